"""Trainings by transformers and Lightning, recorded by the callbacks, and repeated by expunge in the recorded order."""

from __future__ import annotations

import json
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from expunge.bridges import read_recording
from expunge.bridges.recorder import Recorder
from expunge.core.errors import ConfigError, DataError, FileError, ModelError
from expunge.data.records import Records
from expunge.training import Context, Runtime, fit
from expunge.training.loop import Steps
from expunge.training.recipes import Recipe
from expunge.training.recipes.decay_rules import find_undecayed

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

COUNT, LENGTH, CLASSES = 26, 6, 3


def draw_tokens() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Token ids, masks with padding at the end, and labels."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, 20, (COUNT, LENGTH), generator=generator)
    lengths = torch.randint(2, LENGTH + 1, (COUNT, 1), generator=generator)
    mask = (torch.arange(LENGTH) < lengths).long()
    return tokens * mask, mask, torch.randint(0, CLASSES, (COUNT,), generator=generator)


def make_bert() -> nn.Module:
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=LENGTH, num_labels=CLASSES, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    torch.manual_seed(3)
    return transformers.BertForSequenceClassification(config)


class Tokens(nn.Module):
    """A model of transformers for one tensor a record: token ids and mask."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(input_ids=x[:, 0].long(), attention_mask=(x[:, 1] > 0).long()).logits


def train_elsewhere(folder: Path, **arguments: Any) -> tuple[nn.Module, Any]:
    """Train a small BERT by transformers.Trainer with the callback."""
    from expunge.bridges.hf import RecordTraining

    tokens, mask, labels = draw_tokens()
    rows = [
        {"input_ids": tokens[i], "attention_mask": mask[i], "labels": labels[i]} for i in range(COUNT)
    ]  # fmt: skip
    chosen = {
        "output_dir": str(folder / "out"), "per_device_train_batch_size": 8, "num_train_epochs": 3, "warmup_steps": 3,
        "learning_rate": 2e-3, "weight_decay": 0.1, "label_smoothing_factor": 0.1, "report_to": "none",
        "save_strategy": "no", "use_cpu": True, "disable_tqdm": True, "logging_strategy": "no", **arguments,
    }  # fmt: skip
    callback = RecordTraining(folder / "recorded", keep_epochs=(1,), ids=[f"sms-{i}" for i in range(COUNT)])
    trainer = transformers.Trainer(
        make_bert(), transformers.TrainingArguments(**chosen), train_dataset=rows, callbacks=[callback]
    )
    trainer.train()
    return trainer.model, trainer


def as_records(features: Any, labels: Any, ids: Any) -> Records:
    return Records("example", ids, labels, tuple(map(str, range(CLASSES))), features=features)


def make_records() -> Records:
    tokens, mask, labels = draw_tokens()
    features = torch.stack([tokens, mask], dim=1).float().numpy()
    return as_records(features, labels.numpy(), [f"sms-{i}" for i in range(COUNT)])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Any, Path]:
    folder = tmp_path_factory.mktemp("hf")
    model, trainer = train_elsewhere(folder)
    return model, trainer, folder / "recorded"


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    return max(float((a[name] - b[name]).abs().max()) for name in b if b[name].is_floating_point())


def test_a_recorded_trainer_is_repeated(trained: tuple[nn.Module, Any, Path]) -> None:
    """The recipe of the recording, in its order, from its initial weights: the Trainer's weights up to rounding."""
    model, _, folder = trained
    recording = read_recording(folder)
    recording.check_model(model)
    recipe = recording.require_recipe()
    assert (recipe.optimiser, recipe.warmup_steps, recipe.clip_norm, recipe.no_decay) == (
        "adamw",
        3,
        1.0,
        "transformers",
    )
    again = Tokens(make_bert())
    start = recording.read_checkpoint(0)
    assert distance(again.inner.state_dict(), start) == 0
    steps, context = Steps(order=recording.order), Context(make_records(), Runtime("cpu"))
    result = fit(again, np.arange(COUNT), recipe, context, steps=steps, snapshots={1})
    assert distance(start, model.state_dict()) > 1e-2, "the training moves the weights"
    assert distance(again.inner.state_dict(), model.state_dict()) < 1e-6
    early = {name.removeprefix("inner."): tensor for name, tensor in result.snapshots[1].items()}
    assert distance(early, recording.read_checkpoint(1)) < 1e-6
    other = Tokens(make_bert())
    fit(other, np.arange(COUNT), recipe, context)
    assert distance(other.inner.state_dict(), model.state_dict()) > 1e-4, "another order ends elsewhere"


def test_the_schedule_is_that_of_transformers(trained: tuple[nn.Module, Any, Path]) -> None:
    from expunge.training.recipes import from_training_arguments

    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.3)
    for name in ("linear", "cosine", "constant", "constant_with_warmup"):
        for warm in (0, 3, 0.3):
            scheduler = transformers.get_scheduler(
                name, optimiser, num_warmup_steps=warm if warm >= 1 else int(np.ceil(warm * 20)), num_training_steps=20
            )
            recipe = from_training_arguments(
                {"lr_scheduler_type": name, "warmup_steps": warm, "learning_rate": 0.3, "num_train_epochs": 4}
            )
            rates = []
            for _ in range(20):
                rates.append(optimiser.param_groups[0]["lr"])
                optimiser.step()
                scheduler.step()
            assert [recipe.rate(step / 5, 5) for step in range(20)] == rates, (name, warm)
            optimiser.param_groups[0].pop("initial_lr")
            optimiser.param_groups[0]["lr"] = 0.3


@pytest.mark.parametrize("kind", ["bert", "vit", "resnet"])
def test_the_parameters_without_decay_are_those_of_transformers(
    kind: str, trained: tuple[nn.Module, Any, Path]
) -> None:
    makers: dict[str, Any] = {
        "bert": make_bert,
        "vit": lambda: transformers.ViTForImageClassification(transformers.ViTConfig(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=8, patch_size=4
        )),
        "resnet": lambda: transformers.ResNetForImageClassification(transformers.ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic"
        )),
    }  # fmt: skip
    model = makers[kind]()
    decayed = set(trained[1].get_decay_parameter_names(model))
    names = {name for name, _ in model.named_parameters()}
    assert find_undecayed(model, "transformers") == names - decayed


def test_what_cannot_be_repeated_is_recorded_with_the_reason(tmp_path: Path) -> None:
    train_elsewhere(tmp_path, num_train_epochs=1, lr_scheduler_type="polynomial")
    recording = read_recording(tmp_path / "recorded")
    assert recording.recipe is None
    assert "lr_scheduler_type" in recording.problem
    with pytest.raises(ConfigError, match="polynomial"):
        recording.require_recipe()


def test_a_recorded_lightning_training_is_repeated(tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning")
    from expunge.bridges.lightning import RecordTraining

    class Plain(lightning.pytorch.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(1)
            self.net = nn.Sequential(nn.Linear(5, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, CLASSES))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x)

        def training_step(self, batch: Any, number: int) -> torch.Tensor:
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            optimiser = torch.optim.SGD(self.parameters(), 0.2, momentum=0.9)
            return [optimiser], [torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 3)]

    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(COUNT, 5, generator=generator), torch.randint(0, CLASSES, (COUNT,), generator=generator)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=8, shuffle=True)
    module = Plain()
    trainer = lightning.pytorch.Trainer(
        max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, gradient_clip_val=0.5, callbacks=[RecordTraining(tmp_path / "recorded")],
        default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, loader)
    recording = read_recording(tmp_path / "recorded")
    recording.check_model(module)
    assert recording.problem == "", recording.problem
    recipe = recording.require_recipe()
    assert (recipe.lr_schedule, recipe.lr_update, recipe.clip_norm) == ("cosine", "epoch", 0.5)
    assert len(recording.rows) == 3
    assert recording.rows[0].tolist() != recording.rows[1].tolist()
    again = Plain()
    records = as_records(x.numpy(), y.numpy(), recording.record_ids)
    context = Context(records, Runtime("cpu"))
    fit(again, np.arange(COUNT), recipe, context, steps=Steps(order=recording.order))
    assert distance(again.state_dict(), module.state_dict()) == 0, "bit for bit"


def test_a_changed_recording_is_refused(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    recorder = Recorder(tmp_path / "r", keep_epochs=(1,))
    recorder.begin(model, rows=2, tool="test", recipe=Recipe(epochs=1))
    recorder.watch(torch.utils.data.DataLoader([0, 1], shuffle=True))
    assert recorder.sampler is not None
    list(recorder.sampler)
    recorder.end_epoch(model)
    recorder.finish(model, steps=1)
    recording = read_recording(tmp_path / "r")
    assert recording.problem == ""
    assert sorted(recording.rows[0].tolist()) == [0, 1]
    with pytest.raises(ConfigError, match="no checkpoint of epoch 2"):
        recording.read_checkpoint(2)
    with pytest.raises(ModelError, match="not those at the end"):
        recording.check_model(nn.Linear(2, 2))
    with pytest.raises(ConfigError, match="holds a recording"):
        Recorder(tmp_path / "r")
    with pytest.raises(ConfigError, match="holds a recording"):
        recorder.begin(model, rows=2, tool="a second training")
    order = recording.order
    assert order is not None
    with pytest.raises(DataError, match="2 of 2 records"):
        order.order(np.asarray([1, 2], dtype=np.uint64), 0)
    path = tmp_path / "r" / "epoch-0001.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(FileError, match="its hash differs"):
        read_recording(tmp_path / "r")
    body = json.loads((tmp_path / "r" / "recording.json").read_text())
    (tmp_path / "r" / "recording.json").write_text(json.dumps({**body, "files": {"../x": "0"}}))
    with pytest.raises(FileError, match="names a file"):
        read_recording(tmp_path / "r")


def test_a_partial_epoch_is_not_an_order(tmp_path: Path) -> None:
    """Records that were drawn in some epochs only are no order of all records."""
    recorder = Recorder(tmp_path / "r")
    recorder.begin(nn.Linear(1, 1), rows=3, tool="test")
    loader = torch.utils.data.DataLoader([0, 1, 2], sampler=[0, 0, 2])
    recorder.watch(loader)
    assert recorder.sampler is not None
    list(recorder.sampler)
    recorder.end_epoch(nn.Linear(1, 1))
    recorder.finish(nn.Linear(1, 1), steps=3)
    assert "not every record" in read_recording(tmp_path / "r").problem


def test_ids_are_those_of_the_records(tmp_path: Path) -> None:
    for ids, says in ((["a", "b"], "2 ids for 3 training records"), (["a", "b", "a"], "two records have the same id")):
        with pytest.raises(ConfigError, match=says):
            Recorder(tmp_path / "r", ids=ids).begin(nn.Linear(1, 1), rows=3, tool="test")
    assert not (tmp_path / "r").exists()


def test_what_a_trainer_does_otherwise_than_its_arguments_say(tmp_path: Path) -> None:
    """A resumed training, and an optimiser of the user's own: neither is what the arguments would repeat."""
    from expunge.bridges.hf import RecordTraining

    model = nn.Linear(2, 2)
    args = transformers.TrainingArguments(
        str(tmp_path / "out"), per_device_train_batch_size=2, num_train_epochs=1, learning_rate=0.1, use_cpu=True,
        weight_decay=0.0, lr_scheduler_type="constant", report_to="none",
    )  # fmt: skip
    loader = torch.utils.data.DataLoader([0, 1, 2, 3], batch_size=2, shuffle=True)
    for name, optimiser, step, says in (
        ("as it says", torch.optim.AdamW(model.parameters(), 0.1, weight_decay=0.0), 0, None),
        ("resumed", torch.optim.AdamW(model.parameters(), 0.1, weight_decay=0.0), 4, "the training was resumed"),
        ("other", torch.optim.SGD(model.parameters(), 0.1), 0, "the optimiser of the Trainer has optimiser = 'sgd'"),
    ):
        callback = RecordTraining(tmp_path / name)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda at: 1.0)
        state = types.SimpleNamespace(global_step=step)
        callback.on_train_begin(
            args, state, None, model=model, train_dataloader=loader, optimizer=optimiser, lr_scheduler=scheduler
        )
        problem = callback.recorder.body["problem"]
        assert says in problem if says else problem == "", problem
