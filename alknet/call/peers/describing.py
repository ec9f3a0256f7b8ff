"""What a peer has said of an operation, told on to a caller of this node."""

from __future__ import annotations

import msgspec
from msgspec import UNSET, Raw

from alknet.call.discovery import DescribedError, DescribedOperation
from alknet.call.peers.imports import ImportedError, ImportedOperation
from alknet.call.schema import JsonSchema

__all__ = ["describe_imported"]


def describe_imported(operation: ImportedOperation) -> DescribedOperation:
    """Return it as ``services/schema`` does; who may call it is the peer's own matter."""
    name = operation.remote_name
    return DescribedOperation(
        name=name,
        namespace=name.partition("/")[0],
        op_type=operation.op_type.value,
        title=operation.title,
        description=operation.description,
        input_schema=_schema(operation.input_schema),
        item_schema=UNSET if operation.item_schema is None else _schema(operation.item_schema),
        output_schema=_schema(operation.output_schema),
        error_schemas=[_error(error) for error in operation.errors],
        resource_id_path=operation.resource_id_path,
        max_duration_s=operation.max_duration_s,
        large_output=operation.large_output,
        idempotent=operation.idempotent,
        provenance=operation.provenance.value,
    )


def _error(error: ImportedError) -> DescribedError:
    details = error.details_schema
    schema = None if details is None else _schema(details)
    return DescribedError(error.code, error.description, error.http_status, schema)


def _schema(raw: Raw) -> JsonSchema:
    # Its size and depth were bounded when it was imported.
    schema: JsonSchema | bool = msgspec.json.decode(raw)
    if isinstance(schema, bool):  # which stand for what every value meets, and none
        return {} if schema else {"not": {}}
    return schema
