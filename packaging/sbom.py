"""The bill of materials of a wheel, CycloneDX 1.6: what is linked into its extension module.

python packaging/sbom.py OUT.json NAME=VERSION ...
"""

from __future__ import annotations

import json
import os
import sys
import uuid
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

try:
    import tomllib
except ImportError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
_LICENSES = {
    "pybind11": "BSD-3-Clause",
    "libc++": "Apache-2.0 WITH LLVM-exception",
    "libc++abi": "Apache-2.0 WITH LLVM-exception",
    "libunwind": "Apache-2.0 WITH LLVM-exception",
    "compiler-rt": "Apache-2.0 WITH LLVM-exception",
    "mingw-w64": "ZPL-2.1",
    "cudart": "LicenseRef-NVIDIA-CUDA-EULA",
}


def _component(name: str, version: str) -> dict[str, Any]:
    license_id = _LICENSES[name]
    kind = {"expression": license_id} if " " in license_id or license_id.startswith("LicenseRef") else {"license": {"id": license_id}}
    known = {"purl": f"pkg:pypi/{name}@{version}"} if name == "pybind11" else {}
    return {"type": "library", "bom-ref": f"{name}@{version}", "name": name, "version": version, "licenses": [kind], **known}


def document(linked: dict[str, str]) -> dict[str, Any]:
    """linked: name and version of every library inside. The same input gives the same bytes; time: SOURCE_DATE_EPOCH, else 1980."""
    with (ROOT / "pyproject.toml").open("rb") as stream:
        project = tomllib.load(stream)["project"]
    components = [_component(name, version) for name, version in sorted(linked.items())]
    own = f"{project['name']}@{project['version']}"
    body = {
        "metadata": {
            "timestamp": datetime.fromtimestamp(int(os.environ.get("SOURCE_DATE_EPOCH", 315532800)), timezone.utc).isoformat(),
            "component": {
                "type": "library",
                "bom-ref": own,
                "name": project["name"],
                "version": project["version"],
                "purl": f"pkg:pypi/{own}",
                "licenses": [{"license": {"id": project["license"]}}],
            },
        },
        "components": components,
        "dependencies": [{"ref": own, "dependsOn": [entry["bom-ref"] for entry in components]}],
    }
    serial = uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(body, sort_keys=True))
    return {"bomFormat": "CycloneDX", "specVersion": "1.6", "serialNumber": f"urn:uuid:{serial}", "version": 1, **body}


def main() -> None:
    """OUT.json NAME=VERSION ..."""
    out = Path(sys.argv[1])
    linked = dict(entry.split("=", 1) for entry in sys.argv[2:])
    if unknown := sorted(linked.keys() - _LICENSES.keys()):
        sys.exit(f"sbom: no licence is known for {', '.join(unknown)}; known: {', '.join(_LICENSES)}")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(document(linked), indent=1) + "\n")


if __name__ == "__main__":
    main()
