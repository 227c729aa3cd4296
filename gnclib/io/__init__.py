"""Files, written safely and read with care.

Here: atomic writing, strict JSON, tensors, settings, resumable runs, provenance.
Never: anything that knows what the numbers mean.
May import: nothing of gnclib.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "files": ["decode", "dumps", "encode", "held", "sha256", "write_bytes", "write_text"],
        "reading": ["check", "parse_json", "read_bytes", "read_json", "settings", "some"],
        "run": ["Keeper", "drive", "rows", "signals"],
        "state": [
            *("CHECKPOINT", "Checkpoint", "State", "Turn", "demand_tensors", "load_checkpoint"),
            *("read_tensors", "save_checkpoint", "told"),
        ],
        "table": [
            *("Content", "Form", "Job", "Origin", "Record", "Row", "Table"),
            *("from_object", "markdown", "rounded"),
        ],
    },
)
