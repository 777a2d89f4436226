"""Programs that know llama_cpp run on this engine."""

import logging
import subprocess
import sys
import textwrap

import pytest


def run(code, *arguments):
    """Runs code in a fresh interpreter: registering a module name must not touch this one."""
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def test_importing_registers_llama_cpp():
    names = run("""
        import turboquant_native.compat.llama_cpp as llama_cpp
        import importlib.util
        from llama_cpp import Llama, LlamaGrammar, LlamaRAMCache, LogitsProcessorList
        from llama_cpp.llama import StoppingCriteriaList
        from llama_cpp.llama_speculative import LlamaPromptLookupDecoding
        from llama_cpp.llama_grammar import LlamaGrammar as Same
        assert Same is LlamaGrammar and importlib.util.find_spec("llama_cpp") and llama_cpp.Llama is Llama
        print(Llama.__module__)
    """)
    assert names == ["turboquant_native.api.llama"]


def test_the_real_package_is_left_alone():
    lines = run("""
        import sys, types, warnings
        real = sys.modules["llama_cpp"] = types.ModuleType("llama_cpp")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            import turboquant_native.compat.llama_cpp
        print(sys.modules["llama_cpp"] is real, len(caught))
    """)
    assert lines == ["True 1"]


def test_langchain_drives_the_engine(tiny_tqn):
    pytest.importorskip("langchain_community")
    lines = run(
        """
        import sys
        import turboquant_native.compat.llama_cpp
        from langchain_community.embeddings import LlamaCppEmbeddings
        from langchain_community.llms import LlamaCpp
        from turboquant_native import Llama

        path, prompt = sys.argv[1], "The quick brown fox"
        chain = LlamaCpp(model_path=path, n_ctx=256, temperature=0.0, max_tokens=12, verbose=False)
        with Llama(path, n_ctx=256) as llm:  # LangChain asks for a repeat penalty of 1.1
            expected = llm(prompt, temperature=0.0, max_tokens=12, repeat_penalty=1.1)["choices"][0]["text"]
            vector = llm.embed("fox")
        print(chain.invoke(prompt) == expected)
        print("".join(chain.stream(prompt)) == expected)
        print(chain.get_num_tokens(prompt) > 0)
        print(LlamaCppEmbeddings(model_path=path, n_ctx=64).embed_query("fox") == vector)
        print(expected in chain.batch([prompt, "fox"]))
        """,
        tiny_tqn,
    )
    assert lines == ["True"] * 5


def test_instructor_gets_its_objects(tiny_tqn):
    pytest.importorskip("instructor")
    lines = run(
        """
        import sys
        import turboquant_native.compat.llama_cpp as llama_cpp
        import instructor
        from pydantic import BaseModel

        class Fox(BaseModel):
            quick: bool
            brown: bool

        llm = llama_cpp.Llama(sys.argv[1], n_ctx=1024, chat_format="chatml")
        for mode in (instructor.Mode.JSON_SCHEMA, instructor.Mode.TOOLS):
            create = instructor.patch(create=llm.create_chat_completion_openai_v1, mode=mode)
            fox = create(response_model=Fox, messages=[{"role": "user", "content": "fox"}], max_tokens=200)
            print(isinstance(fox, Fox))
        """,
        tiny_tqn,
    )
    assert lines == ["True"] * 2


def test_outlines_constrains_the_engine(tiny_tqn):
    pytest.importorskip("outlines")
    pytest.importorskip("numba")  # outlines' kernels on NumPy arrays need it
    lines = run(
        """
        import sys
        import turboquant_native.compat.llama_cpp as llama_cpp
        from typing import Literal
        import outlines

        model = outlines.from_llamacpp(llama_cpp.Llama(sys.argv[1], n_ctx=256, chat_format="chatml"))
        print(model("fox", Literal["quick", "lazy"], max_tokens=20) in ("quick", "lazy"))
        """,
        tiny_tqn,
    )
    assert lines == ["True"]


def test_log_callback(tiny_tqn):
    from turboquant_native import Llama
    from turboquant_native.compat import llama_cpp

    lines = []
    logging.getLogger("turboquant_native").setLevel(logging.INFO)
    try:
        llama_cpp.llama_log_set(lambda level, text, data: lines.append((level, text, data)), "mine")
        Llama(str(tiny_tqn), n_ctx=16).close()
        assert any(level == 2 and b"loaded" in text and data == "mine" for level, text, data in lines)
        llama_cpp.llama_log_set(None)
        count = len(lines)
        Llama(str(tiny_tqn), n_ctx=16).close()
        assert len(lines) == count
    finally:
        logging.getLogger("turboquant_native").setLevel(logging.NOTSET)
        sys.modules.pop("llama_cpp", None)
