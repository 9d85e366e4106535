"""Records from data frames, Arrow tables and Hugging Face datasets: columns by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from expunge.core.errors import ConfigError, DataError, join_names, unknown_name_hint
from expunge.data.reading.extras import import_extra
from expunge.data.records import Caution, Records
from expunge.data.tables.build import build_records
from expunge.data.tables.columns import check_present, check_present_label, read_codes, read_strings
from expunge.data.tables.hf import open_dataset
from expunge.data.tables.reader import TableReader
from expunge.data.tables.roles import Roles
from expunge.data.tables.tokens import Tokens, find_fill

from .given import Given, make_labels

#: Longer strings are text, and not values that select a forget set.
_LONGEST = 200


def as_table(data: Any, where: object) -> TableReader | None:
    """The columns of a data frame, an Arrow table, or a Hugging Face dataset; None for something else.

    A Hugging Face dataset with images, or with a transform of its own, is read item by item instead (None).

    Raises:
        ConfigError: pyarrow is not installed.
        DataError: the columns of a data frame have no common type.
    """
    package = type(data).__module__.partition(".")[0]
    kind = type(data).__name__
    if package == "datasets" and kind == "Dataset":
        decoded = any(type(feature).__name__ in ("Image", "Array2D", "Array3D") for feature in data.features.values())
        custom = data.format["type"] not in (None, "numpy", "torch", "python", "arrow", "pandas", "polars")
        return None if decoded or custom else open_dataset(data, where)
    if package not in ("pandas", "polars", "pyarrow") or kind not in ("DataFrame", "Table"):
        return None
    pyarrow = import_extra("pyarrow", "parquet", f"a {package} DataFrame")
    names: dict[str, list[str]] = {}
    try:
        if package == "pandas":
            table = pyarrow.Table.from_pandas(data, preserve_index=False)
            names = {str(name): _list_categories(data[name]) for name in data.columns if _is_ordered(data[name])}
        else:
            table = data.to_arrow() if package == "polars" else data
    except (pyarrow.ArrowException, TypeError, ValueError) as error:
        text = " ".join(str(error).split())[:200]
        raise DataError(f"a column has values of several types ({text})", where=where) from error
    return TableReader(table, where, names)


def _is_ordered(column: Any) -> bool:
    """Whether a pandas column has categories of strings, whose order is that of its codes."""
    kind: Any = getattr(column, "dtype", None)
    return type(kind).__name__ == "CategoricalDtype" and all(isinstance(name, str) for name in kind.categories)


def _list_categories(column: Any) -> list[str]:
    return [str(name) for name in column.dtype.categories]


def records_of_table(table: TableReader, given: Given) -> Records:
    """Records from columns.

    Features are those that the caller names; else the columns of token lists, if there are some; else the text, if
    there is a tokenizer; else all other columns, which must then be numbers.

    Raises:
        ConfigError: a column does not exist, or the features are not clear.
        DataError: values are missing or have another type.
    """
    import pyarrow.types as types

    where = given.name
    for name in (given.column("label"), given.column("ids"), given.column("subjects"), *(given.features or ())):
        if name is not None and name not in table.names:
            raise ConfigError(f"there is no column {name!r}", where=where, hint=unknown_name_hint(name, table.names))
    label = given.find_label(table.names)
    fixed = _read_given(table, given, label)
    used = given.list_taken(label) & set(table.names)
    rest = [name for name in table.names if name not in used]
    kinds = {name: table.table.schema.field(name).type for name in rest}
    lists = [name for name in rest if types.is_nested(kinds[name])]
    strings = [name for name in rest if _is_text(kinds[name])]
    chosen = _choose(given, rest, lists, strings)
    others = [name for name in rest if name not in chosen]
    booleans, select, unused = _sort_others(table, others, kinds)
    roles = Roles(
        "",
        numeric=[n for n in chosen if n not in strings and n not in lists],
        categorical=[n for n in chosen if n in strings and given.tokenizer is None],
        text=[n for n in chosen if n in strings and given.tokenizer is not None],
        boolean=booleans,
        select=select,
        ignore=[*(name for name in used if name), *unused],
    )
    hint = "features=[...] names those that are"
    fixed["cautions"] = list(given.cautions)
    if unused and given.features is None:
        fixed["cautions"].append(Caution(f"columns that are not used: {join_names(unused)}", hint))
    flags = [name for name in chosen if types.is_boolean(kinds.get(name))]
    if flags and given.features is None:
        what = "is a feature" if len(flags) == 1 else "are features"
        text = f"{join_names(flags)} (true or false) {what}, and cannot select a forget set"
        fixed["cautions"].append(Caution(text, hint))
    fixed["cautions"] = tuple(fixed["cautions"])
    if not any(name in lists for name in chosen):
        tokenizer = given.tokenizer if roles.text else None
        return build_records(
            table, roles, name=given.name, tokenizer=tokenizer, max_length=given.max_length, given=fixed
        )
    if not all(name in lists for name in chosen):
        raise ConfigError("lists and single numbers cannot be one input", where=where, hint="name the features")
    tokens = _read_lists(table, chosen, given)
    columns = {name: read_codes(table.read(name), name, where) for name in select}
    return Records(
        given.name,
        features=tokens.pack(),
        fields=tokens.fields,
        columns={name: np.asarray(names, dtype=np.str_)[codes] for name, (codes, names) in columns.items()},
        **fixed,
    )


def _choose(given: Given, rest: Sequence[str], lists: Sequence[str], strings: Sequence[str]) -> list[str]:
    """The columns that are features."""
    if given.features is not None:
        return list(given.features)
    if lists:
        return list(lists)
    if given.tokenizer is not None:
        if len(strings) != 1:
            raise ConfigError(
                f"the text may be {join_names(list(strings))}" if strings else "no column is text",
                where=given.name,
                hint="name it: features='...'",
            )
        return list(strings)
    if strings:
        names, one = join_names(list(map(repr, strings))), len(strings) == 1
        kind = "is a column of strings" if one else "are columns of strings"
        shown = [name for name in rest if name not in strings][:4] or list(strings)[:4]
        raise ConfigError(
            f"{names} {kind}: it is not clear whether {'it is a feature' if one else 'they are features'}",
            where=given.name,
            hint=f"features={shown} names the features: strings become one-hot; text is read with tokenizer=...",
        )
    return list(rest)


def _is_text(kind: Any) -> bool:
    import pyarrow.types as types

    if types.is_dictionary(kind):
        kind = kind.value_type
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _sort_others(
    table: TableReader, names: Sequence[str], kinds: dict[str, Any]
) -> tuple[list[str], list[str], list[str]]:
    """Columns that are no features: truth values and short strings or integers can select a forget set."""
    import pyarrow.types as types

    booleans, select, unused = [], [], []
    for name in names:
        kind, column = kinds[name], table.read(name)
        if types.is_boolean(kind) and not column.null_count:
            booleans.append(name)
        elif types.is_integer(kind) or (_is_text(kind) and _longest(column) <= _LONGEST):
            select.append(name)
        else:
            unused.append(name)
    return booleans, select, unused


def _longest(column: Any) -> int:
    """Characters of the longest string."""
    import pyarrow.compute as compute

    values = column.unique() if column.num_chunks else column
    values = values.cast("string") if hasattr(values.type, "value_type") else values
    return int(compute.max(compute.utf8_length(values)).as_py() or 0)


def _read_given(table: TableReader, given: Given, label: str) -> dict[str, Any]:
    """Labels, ids and subjects: of columns, or as given."""
    import pyarrow.types as types

    where, values, classes = given.name, given.label, given.classes
    if label:
        column = table.read(label)
        check_present_label(column, label, where)
        if types.is_nested(column.type) or types.is_floating(column.type):
            hint = "labels are class names, or integers from 0: one for each record"
            raise DataError(f"the label {label!r} is {column.type}", where=where, hint=hint)
        classes = classes or tuple(table.class_names.get(label, ())) or None
        values = read_strings(column, label, where, "label") if _is_text(column.type) else column.to_numpy()
        values = values.tolist() if values.dtype.kind == "U" else values
    labels, names = make_labels(values, classes, where)
    if len(labels) != table.count:
        raise DataError(f"there are {len(labels)} labels for {table.count} rows", where=where)
    placed = dict(vars(given))
    for role, what in (("ids", "record id"), ("subjects", "subject id")):
        name = given.column(role)
        if name is not None:
            placed[role] = read_strings(table.read(name), name, where, what)
    return {"labels": labels, "class_names": names, **Given(**placed).make_fields(table.count)}


def _read_lists(table: TableReader, chosen: Sequence[str], given: Given) -> Tokens:
    """Columns of lists of integers as tokens."""
    import pyarrow.compute as compute
    import pyarrow.types as types

    where = given.name
    values: dict[str, Any] = {}
    lengths: Any = None
    for name in chosen:
        column = table.read(name)
        kind = column.type
        is_list = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
        if not is_list or not types.is_integer(kind.value_type):
            hint = "lists of integers (tokens) are read; give other arrays as items of a dataset"
            raise DataError(f"the column {name!r} is {str(kind)[:80]}, not lists of integers", where=where, hint=hint)
        check_present(column, name, where)
        sizes = compute.list_value_length(column).to_numpy().astype(np.int64)
        if lengths is not None and (sizes != lengths).any():
            row = int(np.flatnonzero(sizes != lengths)[0])
            raise DataError(f"{name!r} and {chosen[0]!r} have unequal lengths in row {row}", where=where)
        lengths = sizes
        flat = compute.list_flatten(column)
        check_present(flat, name, where)
        numbers = flat.to_numpy()
        if numbers.size and (numbers.min() < -(2**31) or numbers.max() >= 2**31):
            raise DataError(f"{name!r} has numbers beyond 32 bits", where=where)
        values[name] = numbers.astype(np.int32)
    names = list(chosen)
    if "attention_mask" not in names and len(np.unique(lengths)) > 1:
        names.append("attention_mask")
        values["attention_mask"] = np.ones(int(lengths.sum()), dtype=np.int32)
    fill = dict.fromkeys(names, 0) if given.tokenizer is None else find_fill(names, given.tokenizer)
    return Tokens(tuple(names), values, np.cumsum(lengths), fill)
