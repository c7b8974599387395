"""The published JSON Schema of a policy file: `python -m stockade.policy.schema > src/stockade/policy/schema.json`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from pydantic.json_schema import GenerateJsonSchema

from stockade.policy.model import PolicyFile

if TYPE_CHECKING:
    from pydantic.json_schema import JsonSchemaValue
    from pydantic_core import core_schema


class _WithoutNull(GenerateJsonSchema):
    """TOML has no null: what may be absent is simply not required."""

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        found = super().default_schema(schema)
        if found.get("default", 0) is None:
            del found["default"]
        return found


def schema() -> str:
    """JSON Schema 2020-12, as text that ends in a newline."""
    found = PolicyFile.model_json_schema(schema_generator=_WithoutNull)
    return json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", **found}, indent=2, sort_keys=True) + "\n"


if __name__ == "__main__":
    print(schema(), end="")
