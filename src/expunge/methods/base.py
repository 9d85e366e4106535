"""The interface of an unlearning method. A method writes `unlearn`; everything around it is here."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, cast

from torch import nn

from expunge.core.errors import MethodError, RequestError
from expunge.core.mask import Mask
from expunge.core.outcome import Outcome
from expunge.core.registry.custom_code import naming
from expunge.core.request import ForgetRequest
from expunge.core.split import Split
from expunge.core.trained import Trained
from expunge.data.corrections.values import check_correction
from expunge.data.records import Records
from expunge.models import Architecture
from expunge.sparsity import Schedule
from expunge.training import batchnorm
from expunge.training.context import Context
from expunge.training.recipes import Recipe
from expunge.training.train import train

from .reads import Reads, Sizes
from .task import Task, check_guarantee


class Method(abc.ABC):
    """Base class of methods. A method is a frozen dataclass of hyper-parameters; it never modifies `trained`.

    Attributes:
        name: the registered name.
        guarantee: the strongest one of its outcomes (a key of `expunge.core.outcome.GUARANTEES`); see `find_guarantee`.
        citation: paper and section or equation.
        trains: whether the original must be trained by the method's `fit`.
        corrects: whether the method can forget old values of records and learn new ones (a request with a correction).
        space: the search space of its options (`expunge.methods.space`); empty: it is not tuned.
        trains_on: `forget` if its training reads D_f alone, which may be a single record; a class may set it.
        one_process: why it runs on one process although the runtime has several (`Runtime.devices`); empty: its
            training shares every batch among them.
        idle_if_zero: options of which each alone leaves the parameters as they are if it is 0 (`find_idle_reason`).

    `register_method` sets the other class attributes.
    """

    name: ClassVar[str]
    guarantee: ClassVar[str]
    citation: ClassVar[str]
    trains: ClassVar[bool] = False
    corrects: ClassVar[bool] = False
    trains_on: ClassVar[str | None] = None
    one_process: ClassVar[str] = "its steps are not those of the common training loop"
    idle_if_zero: ClassVar[tuple[str, ...]] = ()
    space: ClassVar[Mapping[str, Any]] = {}

    @abc.abstractmethod
    def unlearn(self, task: Task) -> Trained | None:
        """Unlearn the request of a task, which is not empty and valid.

        Change `task.model` (a copy) and, if needed, `task.mask`, `task.state`, `task.guarantee`, `task.line`; or return
        another model. The caller applies the mask, moves the records in the split, measures the time, and finds
        out what was rewritten and dropped.

        Args:
            task: the original, the request, the context, and the result so far.

        Returns:
            None if the result is in the task; or the unlearned model.
        """

    def forget(self, trained: Trained, request: ForgetRequest, context: Context) -> Outcome:
        """Return a model without the request's records.

        Args:
            trained: the original model, with mask, split, provenance and state; not modified.
            request: the records to forget. For an empty request, the result is a copy of the model.
            context: records, runtime, seed, checkpoint, progress.

        Raises:
            RequestError: a record is not in the retain set, or no record would be retained; or the request is a
                correction that the method does not support, or that changes nothing.
            MethodError: state that the method needs is missing, or the code of a custom method failed; or it reads D_r,
                and the split declares that its records are absent.
        """
        if request.correction is not None:
            self.check_corrects()
            check_correction(context.records, trained.split, request.correction)
        if self.one_process:
            context = dataclasses.replace(context, runtime=context.runtime.alone())
        task = Task(
            trained, request, context, name=self.name, options=dataclasses.asdict(cast(Any, self)),
            guarantee=self.guarantee,
        )  # fmt: skip
        if len(request.record_ids) == 0:
            return task.identity()
        self.check_retained(trained.split)
        import torch

        gradients = (torch.inference_mode(False), torch.enable_grad())  # the caller may have switched them off
        with gradients[0], gradients[1], naming("method", self.name, type(self), MethodError):
            self.check_state(trained)
            self.check_request(trained.model, trained.mask, request, context.records)
            announced = task.guarantee = self.find_guarantee(trained)
            task.start()
            after = self.unlearn(task)
        if after is not None and not isinstance(after, Trained):
            raise MethodError(
                f"unlearn returned a value of type {type(after).__name__}, neither None nor a Trained",
                where=f"method {self.name}",
                hint="change task.model, and return nothing",
            )
        check_guarantee(announced, self.guarantee, self.name)
        check_guarantee(task.guarantee, announced, self.name)
        return task.finish(task.result() if after is None else after)

    def fit(
        self, records: Records, split: Split, architecture: Architecture, *, recipe: str | Recipe, context: Context
    ) -> Trained:
        """Train the original model. A method that acts during training overrides it, with `trains=True`.

        The default is `expunge.train`. What `forget` needs later is stored in the `state` of the result.

        Args:
            records: features and labels.
            split: assigns the records to training and validation.
            architecture: the network to build.
            recipe: a registered name or a `Recipe`.
            context: runtime, seed, checkpoint, progress.
        """
        return train(
            records, split, architecture, recipe=recipe, seed=context.seed, runtime=context.runtime,
            checkpoint=context.checkpoint, progress=context.progress,
        )  # fmt: skip

    # ---- what is known before the method runs

    def find_guarantee(self, trained: Trained) -> str:
        """Find the guarantee that the outcome on a model will have. Tables and checks show it, and `forget` uses it.

        The default is the registered one. A method that keeps it for some models or options only overrides this.

        Args:
            trained: the original; or a stand-in for it (mask, provenance and names of its state), before it is trained.
        """
        return self.guarantee

    def find_idle_reason(self, trained: Trained) -> str:
        """Find out why the method with these options cannot change a model: `0 epochs`; empty if it may change it.

        `check` and `forget` of an adopted model caution with it.

        Args:
            trained: the original.
        """
        zero = [name for name in self.idle_if_zero if getattr(self, name) == 0]
        follows = self.batch_norm == "re-estimate" or (self.batch_norm == "train" and "epochs" not in zero)
        if not zero or (follows and batchnorm.find_layers(trained.model)):
            return ""
        return "0 epochs" if "epochs" in zero else f"{zero[0]} = 0"

    @property
    def batch_norm(self) -> str | None:
        """What the method does with the BatchNorm buffers (a key of `batchnorm.MODES`); None: nothing."""
        return None

    @property
    def needs_validation(self) -> str | None:
        """The option that needs validation records of the classes of D_f; None: there is none."""
        return None

    def unsupported_reason(self, model: nn.Module, records: Records) -> tuple[str, str] | None:
        """Return why the method does not support a network, and a hint; None if it does. Checked before training."""
        return None

    @classmethod
    def check_corrects(cls) -> None:
        """Raise RequestError if the method does not support corrections. Checked before anything is read."""
        if not cls.corrects:
            raise RequestError(
                "this method removes records; it cannot correct them",
                where=f"method {cls.name}",
                hint="Retrain, FT and Warnecke can: docs/methods.md says which methods support corrections",
            )

    def check_state(self, trained: Trained) -> None:  # noqa: B027
        """Raise MethodError or MaskError if a model does not have the state that the method needs.

        Called before `unlearn`, and by `expunge check` before anything is computed.
        """

    def check_recipe(self, recipe: Recipe) -> None:  # noqa: B027
        """Raise an error if the method cannot be used for an original that is trained with a recipe.

        Called by `expunge check`, and before anything is trained, if the original is to be trained.
        """

    def check_request(  # noqa: B027
        self, model: nn.Module, mask: Mask | None, request: ForgetRequest, records: Records
    ) -> None:
        """Raise RequestError if the method cannot forget this request in this model.

        Called before `unlearn`, and by `expunge check` before anything is trained.

        Args:
            model: the original's network; not trained yet where `check` builds it.
            mask: its mask; None if it is dense, or not pruned yet.
            request: the records to forget.
            records: the records.
        """

    def check_pruning(self, schedule: str, keep_weights: bool) -> None:  # noqa: B027
        """Raise MethodError if a model that is pruned so will not have the state that the method needs.

        Args:
            schedule: name of the pruning schedule.
            keep_weights: whether the weights from before pruning are stored.
        """

    def check_retained(self, split: Split) -> None:
        """Raise MethodError if the split declares the records of D_r absent, and the method reads them.

        Args:
            split: of the original.
        """
        if split.retain_absent and self.reads_retained:
            raise MethodError(
                "it reads records of D_r, which the split declares absent",
                where=f"method {self.name}",
                hint="`expunge check` lists the methods that do without; or declare a stand-in retain set: "
                "forget.stand_in={source: ...}",
            )

    @property
    def reads_retained(self) -> bool:
        """Whether it reads records of D_r. If they are absent and it does, `forget` refuses, and `expunge check` too.

        A method with these options that can do without them overrides it.
        """
        return True

    def estimate_reads(self, trained: Trained, sizes: Sizes) -> Reads | None:
        """Estimate which records `forget` reads, and how often; None: it is not known before it runs.

        `expunge check` shows it, with a time. It is what `Cost` counts later, or an upper bound of it (`at_most`).

        Args:
            trained: the original; or a stand-in for it, before it is trained.
            sizes: the numbers of records of D_r, D_f and so on.
        """
        return None

    def describe_cost(self, trained: Trained) -> tuple[str, str] | None:
        """Return what the method recomputes because a model does not store it, and a hint; None: nothing, or not known.

        `expunge check` shows it.

        Args:
            trained: the original; or a stand-in with mask, recipe and names of state, before it is trained.
        """
        return None

    def for_dense_model(self) -> Method:
        """The method that runs if the model is dense: this one, unless it only acts on a mask."""
        return self

    def needed_curvature(self, schedule: Schedule | None) -> str | None:
        """The matrix of second derivatives that the method computes (`training.curvature.CURVATURES`); None: none.

        Args:
            schedule: the schedule that prunes, or pruned, the original; None: the model is dense, or it is not known.
        """
        return None

    @classmethod
    def drop_unused(cls, options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Split options into those that have an effect together, and those that the others leave without effect.

        Plans share options between cells, so a cell drops what it does not use. Written to a method directly, such an
        option is an error.

        Args:
            options: options by name, of which some may be left out.

        Returns:
            The options to use, and the dropped ones.
        """
        return dict(options), {}
