"""Checks the types of Parquet columns.

The checks return what a column should hold if its type is wrong, as the end of a sentence and with
the next step, in which ``[column]`` stands for the column's name; None if the type is right.
"""

import pyarrow as pa
import pyarrow.types as types


def is_text(kind: pa.DataType) -> bool:
    """Return whether a type is text, also in the form of a dictionary or of plain bytes."""
    kind = kind.value_type if types.is_dictionary(kind) else kind
    return any(
        test(kind)
        for test in (
            types.is_string,
            types.is_large_string,
            types.is_string_view,
            types.is_binary,
            types.is_large_binary,
            types.is_binary_view,
        )
    )


def is_id(kind: pa.DataType) -> bool:
    """Return whether values of a type can be ids: text, whole numbers, or bytes such as UUIDs."""
    kind = kind.value_type if types.is_dictionary(kind) else kind
    kind = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind
    return is_text(kind) or types.is_integer(kind) or types.is_fixed_size_binary(kind)


def is_moment(kind: pa.DataType) -> bool:
    """Return whether values of a type can be times."""
    return (
        types.is_timestamp(kind)
        or types.is_date(kind)
        or types.is_integer(kind)
        or is_text(kind)
    )  # fmt: skip


def is_list(kind: pa.DataType) -> bool:
    """Return whether a type is a list of any form."""
    return any(
        test(kind)
        for test in (
            types.is_list,
            types.is_large_list,
            types.is_fixed_size_list,
            types.is_list_view,
            types.is_large_list_view,
        )
    )


def an_id(kind: pa.DataType) -> str | None:
    """Check a column of ids."""
    if is_id(kind):
        return None
    step = " df[column].astype('Int64') turns floats into ids." if types.is_floating(kind) else ""
    return f"ids: text or whole numbers.{step}"


def a_text(kind: pa.DataType) -> str | None:
    """Check a column of texts."""
    right = is_text(kind) or types.is_null(kind)
    return None if right else "text. df[column].astype(str) makes text."


def a_name(kind: pa.DataType) -> str | None:
    """Check a column of names, such as categories."""
    right = is_id(kind) or types.is_null(kind)
    return None if right else "text or whole numbers. df[column].astype(str) makes text."


def a_time(kind: pa.DataType) -> str | None:
    """Check a column of times."""
    if is_moment(kind):
        return None
    return "times: timestamps, text such as 2019-11-11 09:05:58, or whole seconds since 1970."


def ids(kind: pa.DataType) -> str | None:
    """Check a column of lists of ids."""
    if types.is_null(kind):
        return None
    if is_list(kind) and (is_id(kind.value_type) or types.is_null(kind.value_type)):
        return None
    step = " df[column].str.split() makes lists of words." if is_text(kind) else ""
    return f"lists of ids (text or whole numbers).{step}"


def a_number(kind: pa.DataType) -> str | None:
    """Check a column of whole numbers."""
    right = types.is_integer(kind)
    return None if right else "whole numbers. df[column].astype('int64') makes them."


def a_flag(kind: pa.DataType) -> str | None:
    """Check a column of true and false."""
    return None if types.is_boolean(kind) or types.is_null(kind) else "true and false."


def numbers(kind: pa.DataType) -> str | None:
    """Check a column of lists of whole numbers."""
    right = types.is_null(kind) or (
        is_list(kind) and (types.is_integer(kind.value_type) or types.is_null(kind.value_type))
    )
    return None if right else "lists of whole numbers, such as int32."


def a_measure(kind: pa.DataType) -> str | None:
    """Check a column of numbers that need not be whole."""
    right = types.is_floating(kind) or types.is_integer(kind) or types.is_null(kind)
    return None if right else "numbers. df[column].astype('float32') makes them."


def texts(kind: pa.DataType) -> str | None:
    """Check a column of lists of texts."""
    right = types.is_null(kind) or (
        is_list(kind) and (is_text(kind.value_type) or types.is_null(kind.value_type))
    )
    return None if right else "lists of texts."


def flags(kind: pa.DataType) -> str | None:
    """Check a column of lists of labels."""
    if types.is_null(kind):
        return None
    value = kind.value_type if is_list(kind) else None
    if value is not None and (
        types.is_boolean(value)
        or types.is_integer(value)
        or types.is_floating(value)
        or types.is_null(value)
    ):
        return None
    return "lists with true or 1 (clicked) and false or 0 (skipped) for each candidate."
