"""What `purge` finds: artefacts, how they relate to the records, and what is out of reach."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

from expunge.core.show import plural, repr_fields

#: How an artefact relates to the given records, from the closest relation to the loosest.
STATUSES: dict[str, str] = {
    "trained": "trained on the records, or holds what such a training stored",
    "forgotten": "was trained on them, or made from such a model, and has forgotten them by a method",
    "derived": "made from an artefact that saw them",
    "holds": "holds a copy of their features",
    "evaluated": "has them in its validation, test or non-member part",
    "names": "names them",
    "unknown": "does not record which records it saw",
}
#: What no search on this machine finds.
OUT_OF_REACH = (
    "copies of a model elsewhere: exported weights (safetensors, ONNX, save_pretrained folders), deployed models",
    "report pages, tables and scores that were sent or printed",
    "backups, file-system snapshots, and blocks that the disk has not overwritten yet",
    "stores and models on other machines, and in directories that were not named",
    "the history of git and of other version control, artefacts of experiment trackers",
    "the records themselves, in the files of their data source",
    "records that stood in for an absent D_r: no artefact has the ids of a stand-in, so they are not searched for",
)
#: Ids that are in nothing, in the text of a result.
_SHOWN = 10


@dataclasses.dataclass(frozen=True)
class Artefact:
    """Something stored that saw the given records, or may have.

    Attributes:
        path: its directory or file.
        kind: `store entry STAGE`, `checkpoint`, `leftover`, `failure`, `log`, `index`, `model directory`,
            `recording`, `file`.
        status: a key of `STATUSES`.
        reason: from what this is known, in words.
        records: how many of the given records it names; 0: it names none itself.
        bytes: size of its files.
        key: of the store; empty outside of it.
        action: what `--delete` does: `delete`, or `keep`.
        result: `deleted`, `in use`, or why it was not deleted; empty before that.
    """

    path: str
    kind: str
    status: str
    reason: str
    records: int = 0
    bytes: int = 0
    key: str = ""
    action: str = "keep"
    result: str = ""

    __repr__ = repr_fields

    @property
    def is_left(self) -> bool:
        """Whether it is still there."""
        return self.result != "deleted"


@dataclasses.dataclass(frozen=True)
class Purge:
    """The result of a search, or of a deletion.

    Attributes:
        records: the number of records that were searched for.
        searched: number of store entries, directories and files that were looked at.
        artefacts: what was found, sorted by path.
        deleting: whether artefacts were to be deleted.
        unseen: the ids that nothing of what was searched has, sorted; one that is mistyped is among them.
        out_of_reach: what the search cannot find.
    """

    records: int
    searched: int
    artefacts: tuple[Artefact, ...]
    deleting: bool = False
    out_of_reach: tuple[str, ...] = OUT_OF_REACH
    unseen: tuple[str, ...] = ()

    __repr__ = repr_fields

    @property
    def exit_code(self) -> int:
        """0: nothing is left; 3: something that `--delete` deletes is; 4: only what the user has to judge is.

        The user judges unlearned models, files that name records, and what is unknown.
        """
        left = {found.action for found in self.artefacts if found.is_left}
        return 3 if "delete" in left else 4 if left else 0

    def to_json(self) -> dict[str, Any]:
        """The result as JSON values."""
        return {
            "records": self.records,
            "searched": self.searched,
            "deleting": self.deleting,
            "artefacts": [dataclasses.asdict(found) for found in self.artefacts],
            "unseen": list(self.unseen),
            "meaning": STATUSES,
            "out_of_reach": list(self.out_of_reach),
            "exit_code": self.exit_code,
        }

    def text(self) -> str:
        """One line for each artefact with its reason, the totals, and what is out of reach."""
        lines = []
        for found in self.artefacts:
            result = f" [{found.result}]" if found.result else ""
            lines.append(f"{found.status:<9} {found.kind}: {found.path} ({found.bytes / 2**20:.1f} MiB){result}")
            lines.append(f"{'':<9}   {found.reason}")
        counts = Counter(found.status for found in self.artefacts)
        what = ", ".join(f"{counts[status]} {status}" for status in STATUSES if counts[status]) or "nothing"
        lines.append(f"{plural(self.records, 'record')} searched for in {plural(self.searched, 'place')}: {what}")
        if self.unseen:
            more = f" and {len(self.unseen) - _SHOWN} more" if len(self.unseen) > _SHOWN else ""
            names = ", ".join(self.unseen[:_SHOWN]) + more
            lines.append(f"{len(self.unseen)} of the ids {'is' if len(self.unseen) == 1 else 'are'} in none: {names}")
            lines.append(
                "  compare them with the data: for a mistyped id, the record that was meant was not searched for"
            )
        if self.deleting:
            deleted = [found for found in self.artefacts if found.result == "deleted"]
            freed = sum(found.bytes for found in deleted) / 2**20
            lines.append(f"deleted: {len(deleted)} ({freed:.1f} MiB)")
        elif any(found.action == "delete" for found in self.artefacts):
            lines.append("nothing was deleted; --delete deletes: " + self._list_deletable())
        kept = sum(found.is_left and found.action == "keep" for found in self.artefacts)
        if kept:
            lines.append(f"kept: {kept}; unlearned models and files that name records are yours to delete or edit")
        lines.append("not searched, and out of reach:")
        lines += [f"  - {line}" for line in self.out_of_reach]
        return "\n".join(lines)

    def _list_deletable(self) -> str:
        counts = Counter(found.kind for found in self.artefacts if found.action == "delete")
        return ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
