"""python -m gateway.config.schema: writes the JSON Schema."""

import json
import sys

from gateway.config.schema.editors import json_schema


def main() -> None:
    sys.stdout.write(json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
