"""Chat templates are code from strangers: each of these ends as a TemplateError within the limits, and harms nothing else."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from turboquant_native.api.template_process import TemplateError, TemplateProcess

VALUES = {"messages": [{"role": "user", "content": "Hi"}], "add_generation_prompt": True}
SECONDS, MEMORY = 0.15, 64 << 20
LIMITS = "exceeds its limits"


@pytest.fixture(scope="module")
def hasty():
    return TemplateProcess(SECONDS, MEMORY)


@pytest.fixture(scope="module")
def process():
    return TemplateProcess(20, MEMORY)


DOUBLING = "{%% set ns = namespace(s='aaaaaaaa', l=[]) %%}{%% for i in range(60) %%}%s{%% endfor %%}{{ ns.s }}"
NESTING = "{% set ns = namespace(l=[1]) %}{% for i in range(60) %}{% set ns.l = [ns.l, ns.l] %}{% endfor %}"
SLOW = {
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "a macro that calls itself twice": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "loop() twice": "{% for x in [60] recursive %}{% if x %}{{ loop([x - 1]) }}{{ loop([x - 1]) }}{% endif %}{% endfor %}",
    "squares": "{% set ns = namespace(n=7) %}{% for i in range(60) %}{% set ns.n = ns.n * ns.n %}{% endfor %}",
    "powers": "{{ (9 ** (10 ** 8)) % 7 }}",
    "a power of a power": "{{ 3 ** (7 ** 12) }}",
    "lipsum": "{{ lipsum(10 ** 9) }}",
    "lipsum's length": "{{ lipsum(n=1, min=10 ** 8, max=10 ** 8 + 1) | length }}",
    "round": "{{ 2.5 | round(10 ** 9, 'ceil') }}",
    "round of an integer": "{{ 12345 | round(-10 ** 9, 'floor') }}",
    "digits of an integer": "{{ (10 ** 4000 * 10 ** 4000) ** 3000 }}",
    "nested lists printed": NESTING + "{{ ns.l }}",
    "nested lists as JSON": NESTING + "{{ ns.l | tojson }}",
    "nested lists compared": "{% set ns = namespace(l=[1], m=[1]) %}{% for i in range(60) %}{% set ns.l = [ns.l, ns.l] %}"
    "{% set ns.m = [ns.m, ns.m] %}{% endfor %}{{ ns.l == ns.m }}",
    "a sum": "{% for i in range(99999) %}{{ (range(99999) | sum) % 2 }}{% endfor %}",
    "a sort": "{% for i in range(99999) %}{% set x = range(99999) | sort(reverse=true) | first %}{% endfor %}",
    "a product of filters": "{% for i in range(99999) %}{{ range(99999) | map('string') | join | length }}{% endfor %}",
    "a search": "{% set s = 'a' * 100000 %}{% for i in range(99999) %}{{ s.find('a' * 1000 ~ 'b') }}{% endfor %}",
}
LARGE = {
    "tilde": DOUBLING % "{% set ns.s = '' ~ ns.s ~ ns.s %}",
    "plus": DOUBLING % "{% set ns.s = ns.s + ns.s %}",
    "times": "{{ 'a' * (10 ** 9) }}",
    "times a list": "{{ [messages] * (10 ** 9) }}",
    "times a tuple": "{{ ((1, 2) * (10 ** 9)) | length }}",
    "join": DOUBLING % "{% set ns.s = [ns.s, ns.s] | join %}",
    "join of one": "{{ range(99999) | join('a' * 100000) }}",
    "str.join": DOUBLING % "{% set ns.s = ns.s.join([ns.s, ns.s]) %}",
    "replace": DOUBLING % "{% set ns.s = ns.s | replace('a', 'aa') %}",
    "str.replace": DOUBLING % "{% set ns.s = ns.s.replace('a', 'aa') %}",
    "str.translate": DOUBLING % "{% set ns.s = ns.s.translate({97: 'aa'}) %}",
    "a set block": DOUBLING % "{% set ns.s %}{{ ns.s }}{{ ns.s }}{% endset %}",
    "a macro": "{% macro f(s) %}{{ s }}{{ s }}{% endmacro %}" + DOUBLING % "{% set ns.s = f(ns.s) %}",
    "a filter block": DOUBLING % "{% set ns.s %}{% filter upper %}{{ ns.s }}{{ ns.s }}{% endfilter %}{% endset %}",
    "a call block": "{% macro f() %}{{ caller() }}{{ caller() }}{% endmacro %}"
    + DOUBLING % "{% set ns.s %}{% call f() %}{{ ns.s }}{% endcall %}{% endset %}",
    "indent": "{{ 'a' | indent(10 ** 9, true) }}",
    "indent of lines": "{{ ('a\n' * 10000) | indent(100000) }}",
    "tojson's indent": "{{ [1, [2]] | tojson(indent=10 ** 9) }}",
    "tojson's separators": "{{ [1, 2, 3] | tojson(separators=('x' * 10 ** 8, ':')) }}",
    "center": "{{ 'a' | center(10 ** 9) }}",
    "ljust": "{{ 'a'.ljust(10 ** 9) }}",
    "zfill": "{{ '1'.zfill(10 ** 9) }}",
    "expandtabs": "{{ ('\t' * 100).expandtabs(10 ** 8) }}",
    "a wide percent": "{{ '%1000000000d' % 1 }}",
    "a percent with a star": "{{ '%*d' % (1000000000, 1) }}",
    "the format filter": "{{ '%1000000000d' | format(1) }}",
    "str.format": "{{ '{:1000000000}'.format(1) }}",
    "str.format of a width": "{{ '{:{}}'.format(1, 1000000000) }}",
    "many fields": "{{ ('{0:9999999}' * 1000).format(1) }}",
    "batch": "{{ range(10) | batch(10 ** 9, 'x') | list }}",
    "slice": "{{ range(10) | slice(10 ** 9, 'x') | list }}",
    "wordwrap": "{{ ('a ' * 100000) | wordwrap(1, wrapstring='x' * 100000) }}",
    "urlize": "{{ ('http://example.org ' * 10000) | urlize(rel='x' * 100000) }}",
    "bytes": "{{ ('a' * 10 ** 7).encode('utf-32').decode('latin-1').encode('utf-32').decode('latin-1') * 9 }}",
    "a shift": "{{ (1).__lshift__(10 ** 10) }}",
    "printed as it comes": "{% for i in range(99999) %}{{ 'a' * 100000 }}{% endfor %}",
    "a deep expression": "{{ " + "(" * 20000 + "1" + ")" * 20000 + " }}",
    "many nested blocks": "{% if 1 %}" * 5000 + "{% endif %}" * 5000,
    "a recursive macro": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
}


@pytest.mark.parametrize("kind", SLOW)
def test_a_slow_template_is_stopped(hasty, kind):
    with pytest.raises(TemplateError):
        hasty.render(SLOW[kind], VALUES)


@pytest.mark.parametrize("kind", LARGE)
def test_a_large_template_is_stopped(hasty, kind):
    with pytest.raises(TemplateError):
        hasty.render(LARGE[kind], VALUES)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% if %}", "cannot be read in line 1"),
        ("a\n{% for x in y %}", "cannot be read in line 2"),
        ("a\n{{ 1 / 0 }}", "failed in line 2: ZeroDivisionError"),
        ("{{ {}['a']['b'] }}", "UndefinedError"),
        ("{{ undefined_function() }}", "UndefinedError: 'undefined_function' is undefined"),
        ("{{ messages[0]['content'] + 1 }}", "TypeError"),
        ("{{ 'x'.encode('no such codec') }}", "LookupError"),
        ("{{ '{a}'.format() }}", "KeyError"),
        ("{{ '{}'.format() }}", "IndexError"),
        ("{{ [1] | first(2) }}", "TypeError"),
        ("{% include 'other' %}", "failed in line 1"),
        ("{% break %}", "the chat template"),
        ("{{ (1, 2) | tojson | groupby('a') }}{{ 1 | abs(2) }}", "failed in line 1"),
        ("{{ ().__class__.__mro__[1].__subclasses__() }}", "SecurityError"),
        ("{{ messages.append(1) }}", "SecurityError"),
        ("{{ messages.__init__.__globals__ }}", "SecurityError"),
        ("{{ range(10 ** 6) }}", "OverflowError"),
        ("{{ ('a' | attr('__class__')).mro }}", "SecurityError"),
        ("{{ raise_exception('roles must alternate') }}", "refuses: roles must alternate"),
    ],
)
def test_what_a_template_raises_is_a_template_error(process, template, message):
    with pytest.raises(TemplateError, match=message):
        process.render(template, VALUES)


def test_the_limit_is_named():
    with pytest.raises(TemplateError, match=r"exceeds its limits \(0\.2 seconds, 64 MB\)"):
        TemplateProcess(0.2, MEMORY).render(SLOW["loops"], VALUES)


def test_ordinary_templates_go_on_after_a_hostile_one(process):
    for _ in range(2):
        with pytest.raises(TemplateError, match=LIMITS):
            process.render(LARGE["tilde"], VALUES)
        assert process.render("{{ messages[0].content }}", VALUES) == "Hi"


def test_renderings_share_nothing(process):
    process.render("{% set x = 1 %}{% macro f() %}{% endmacro %}", VALUES)
    assert process.render("{{ x is defined }}{{ f is defined }}", VALUES) == "FalseFalse"


def test_values_that_are_not_json_are_named(process):
    with pytest.raises(TypeError, match="must be JSON values, got <object"):
        process.render("{{ x }}", {**VALUES, "x": object()})
    assert process.render("{{ x }}", {**VALUES, "x": "\ud800é🚀\x00\n"}) == "\ud800é🚀\x00\n"


def child_of(process: TemplateProcess) -> int:
    process.render("x", VALUES)
    return process._child._process.pid


def gone(pid: int) -> bool:
    """Whether a process ended, or ends within some seconds (a zombie that waits for its parent counts)."""
    for _ in range(200):
        try:
            os.kill(pid, 0)
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return True
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.05)
    return False


def test_a_child_that_was_killed_is_replaced():
    process = TemplateProcess(5)
    pid = child_of(process)
    os.kill(pid, signal.SIGKILL)
    assert gone(pid)
    assert process.render("{{ messages[0].content }}", VALUES) == "Hi"


def test_a_child_is_kept_and_ends_with_its_owner():
    process = TemplateProcess(5)
    pid = child_of(process)
    assert child_of(process) == pid
    del process
    assert gone(pid)


def test_the_longest_prompt_comes_through():
    process = TemplateProcess(20)
    assert process.render("{{ '\x01' * 3000000 }}", VALUES) == "\x01" * 3000000
    assert process.render("{{ messages[0].content }}", {"messages": [{"content": "é" * 3000000}]}) == "é" * 3000000


def test_threads_share_a_process():
    process, results = TemplateProcess(10), []

    def work(n: int) -> None:
        results.extend(process.render("{{ n }}", {**VALUES, "n": n}) == str(n) for _ in range(20))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 80 and all(results)


PROGRAM = """
import os, signal, sys, threading, time
from turboquant_native.api.template_process import TemplateProcess
process, values = TemplateProcess(10), {"messages": []}
def pid(): return process.render("x", values) and process._child._process.pid
"""


def run(program: str, *, through_stdin: bool = False) -> "subprocess.CompletedProcess[str]":
    arguments = [sys.executable, "-"] if through_stdin else [sys.executable, "-c", PROGRAM + program]
    return subprocess.run(arguments, input=PROGRAM + program if through_stdin else None, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("through_stdin", [False, True])
def test_no_script_file_is_needed(through_stdin):
    done = run("print(process.render('{{ 1 + 1 }}', values))", through_stdin=through_stdin)
    assert (done.stdout, done.stderr) == ("2\n", "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_fork_gets_a_child_of_its_own_and_leaves_the_old_one():
    done = run("""
old = pid()
process._lock.acquire()  # as another thread may at this moment
forked = os.fork()
if forked == 0:
    new = pid()
    print(new != old, flush=True)
    sys.exit(0)  # runs its exit handlers
os.waitpid(forked, 0)
process._lock.release()
print(pid() == old)
""")
    assert (done.stdout, done.stderr) == ("True\nTrue\n", "")


@pytest.mark.parametrize("template", ["x", "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"])
def test_a_killed_parent_leaves_no_child(template):
    done = run(f"""
process = TemplateProcess(2)
print(pid(), flush=True)
threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGKILL)).start()
process.render({template!r}, values)
time.sleep(30)
""")
    assert done.returncode == -signal.SIGKILL and gone(int(done.stdout))


def test_ctrl_c_interrupts_a_rendering():
    done = run("""
first = pid()
threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    process.render("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", values)
except KeyboardInterrupt:
    print(process.render("after", values), pid() != first)
""")
    assert (done.stdout, done.stderr) == ("after True\n", "")


def test_no_interpreter_is_named_as_the_cause(monkeypatch):
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with pytest.raises(RuntimeError, match=r"multiprocessing\.set_executable"):
        TemplateProcess().render("x", VALUES)
