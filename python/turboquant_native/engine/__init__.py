"""The engine: sequences of tokens in, tokens out. Scheduling, prefix caches, sampling, grammars, speculation, vocabularies."""
