"""Text out of token pieces: whole characters, no stop strings."""

import pytest

from turboquant_native.engine.streaming import TextStream


def collect(pieces, stop=()):
    stream = TextStream(stop)
    parts = [stream.push(piece) for piece in pieces]
    return parts + ([] if stream.stopped_by else [stream.finish()]), stream


def single_bytes(text):
    return [bytes([byte]) for byte in text.encode()]


def test_characters_come_out_whole():
    text = "naïve 世界 👩‍👩‍👧 é"
    parts, _ = collect(single_bytes(text))
    assert "".join(parts) == text
    assert len([part for part in parts if part]) == len(text)
    assert "\ufffd" not in "".join(parts)


def test_an_unfinished_character_at_the_end_is_dropped():
    parts, _ = collect([b"ok", "世".encode()[:2]])
    assert "".join(parts) == "ok"


def test_bytes_that_are_no_utf8_are_replaced():
    parts, _ = collect([b"a\xff", b"b"])
    assert "".join(parts) == "a\ufffdb"


@pytest.mark.parametrize("cuts", range(1, 12))
def test_a_stop_string_is_found_wherever_tokens_cut_it(cuts):
    text = b"one two###three"
    pieces = [text[start : start + cuts] for start in range(0, len(text), cuts)]
    parts, stream = collect(pieces, ["###"])
    assert "".join(parts) == "one two"
    assert stream.stopped_by == "###"


def test_nothing_of_a_stop_string_is_shown_before_it_is_certain():
    stream = TextStream(["END"])
    assert stream.push(b"xE") == "x"
    assert stream.push(b"N") == ""
    assert stream.push(b"d") == "ENd"
    assert stream.push(b"EN") == ""
    assert stream.finish() == "EN"


def test_the_earliest_stop_string_wins_and_the_longest_of_those():
    parts, stream = collect([b"abcde"], ["de", "b", "bc"])
    assert ("".join(parts), stream.stopped_by) == ("a", "bc")


def test_stop_string_of_several_bytes_per_character():
    parts, stream = collect(single_bytes("你好世界"), ["世界"])
    assert ("".join(parts), stream.stopped_by) == ("你好", "世界")


def test_after_a_stop_nothing_comes():
    stream = TextStream(["x"])
    assert stream.push(b"ax") == "a"
    assert stream.push(b"more") == ""


def test_empty_stop_strings_do_not_count():
    parts, stream = collect([b"ab"], [""])
    assert ("".join(parts), stream.stopped_by) == ("ab", None)
