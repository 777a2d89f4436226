"""Chat templates: what they render, and which one is chosen."""

import re
from datetime import datetime

import pytest

from turboquant_native.api.chat_format import NAMED_FORMATS, TemplateError, choose_template, render

MESSAGES = [{"role": "system", "content": "Be <brief> & kind."}, {"role": "user", "content": "Hi"}]


def test_chatml():
    assert render("chatml", MESSAGES) == (
        "<|im_start|>system\nBe <brief> & kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_llama_3():
    text = render("llama-3", MESSAGES[1:], bos_token="<|begin_of_text|>")
    assert text == (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    )


def test_gemma_calls_the_assistant_model():
    turns = [*MESSAGES[1:], {"role": "assistant", "content": "Hello"}]
    text = render("gemma", turns, bos_token="<bos>", add_generation_prompt=False)
    assert text == "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\nHello<end_of_turn>\n"


def test_extensions_of_transformers():
    template = (
        "{% generation %}{{ tools | tojson }}{% endgeneration %}"
        "{% for n in range(9) %}{% if n == 1 %}{% continue %}{% endif %}{% if n == 3 %}{% break %}{% endif %}{{ n }}{% endfor %}"
        "{{ strftime_now('%Y') }}"
    )
    text = render(template, MESSAGES, tools=[{"name": "é<&>"}])
    assert text == '[{"name": "é<&>"}]02' + str(datetime.now().year)


def test_blocks_leave_no_lines():
    assert render("{% for m in messages %}\n  {% if true %}\nx\n  {% endif %}\n{% endfor %}\n", MESSAGES) == "x\nx\n"


def test_a_template_may_refuse():
    with pytest.raises(TemplateError, match="roles must alternate"):
        render("{{ raise_exception('roles must alternate') }}", MESSAGES)


def test_order_of_choice():
    stored = {"tokenizer.chat_template": "{{ 'stored' }}"}
    assert choose_template("gemma", stored, lambda _: True) == NAMED_FORMATS["gemma"]
    assert choose_template("{{ 'given' }}", stored, lambda _: True) == "{{ 'given' }}"
    assert choose_template(None, stored, lambda _: True) == "{{ 'stored' }}"
    assert choose_template(None, {}, lambda text: text == "<start_of_turn>") == NAMED_FORMATS["gemma"]


def test_a_file_may_have_several_templates():
    stored = {"tokenizer.chat_template": "d", "tokenizer.chat_template.tool_use": "t", "tokenizer.chat_template.rag": "r"}
    assert choose_template(None, stored, lambda _: False) == "d"
    assert choose_template(None, stored, lambda _: False, with_tools=True) == "t"
    assert choose_template("rag", stored, lambda _: False, with_tools=True) == "r"
    assert choose_template("default", stored, lambda _: False, with_tools=True) == "d"
    assert choose_template("chatml", {**stored, "tokenizer.chat_template.chatml": "theirs"}, lambda _: False) == NAMED_FORMATS["chatml"]
    assert choose_template(None, {"tokenizer.chat_template": "d"}, lambda _: False, with_tools=True) == "d"
    with pytest.raises(TemplateError, match=r"no default chat template; give chat_format .*tool_use"):
        choose_template(None, {"tokenizer.chat_template.tool_use": "t"}, lambda _: False)


def test_without_any_template_the_error_names_the_choices():
    with pytest.raises(TemplateError, match=re.escape("chatml, llama-3, gemma")):
        choose_template(None, {}, lambda _: False)
    with pytest.raises(TemplateError, match="unknown chat_format 'alpaca'"):
        choose_template("alpaca", {}, lambda _: False)
