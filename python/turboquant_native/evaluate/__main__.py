"""`python -m turboquant_native.evaluate`: lm-evaluation-harness on a model file."""

try:
    from .harness import main
except ModuleNotFoundError as error:
    raise SystemExit(f"{error}: install the extra, pip install 'turboquant-native[eval]'") from None

raise SystemExit(main())
