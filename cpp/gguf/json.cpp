#include "gguf/json.h"

#include <algorithm>
#include <charconv>
#include <version>
#ifndef __cpp_lib_to_chars
#include <locale>
#include <sstream>
#endif

#include "common/error.h"
#include "common/text.h"

namespace tq::json {

static constexpr size_t kMaxBytes = size_t{16} << 20, kMaxValues = size_t{1} << 20;
static constexpr int kMaxDepth = 16;

[[noreturn]] static void fail(const std::string& why) { throw Error(Cause::bad_file, why); }

class Parser {
 public:
  explicit Parser(std::string_view text) : text_(text) {}

  Value document() {
    if (text_.size() > kMaxBytes) error("longer than 16 MiB");
    if (!is_utf8(text_)) error("not UTF-8");
    Value value = read(0);
    skip_space();
    if (at_ != text_.size()) error("unexpected text after the end");
    return value;
  }

 private:
  [[noreturn]] void error(const std::string& why) const { fail("JSON: " + why + " at byte " + std::to_string(at_)); }
  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }
  void skip_space() {
    while (peek() == ' ' || peek() == '\t' || peek() == '\n' || peek() == '\r') at_++;
  }
  bool accept(char c) {
    if (peek() != c) return false;
    at_++;
    return true;
  }
  void expect(char c) {
    skip_space();
    if (!accept(c)) error(std::string("expected '") + c + "'");
  }

  Value read(int depth) {
    if (depth > kMaxDepth) error("nested more than " + std::to_string(kMaxDepth) + " deep");
    if (++values_ > kMaxValues) error("more than " + std::to_string(kMaxValues) + " values");
    skip_space();
    switch (peek()) {
      case '{':
        return object(depth);
      case '[':
        return array(depth);
      case '"':
        return {Kind::string, string(), {}};
      case 't':
        return word("true", Kind::boolean);
      case 'f':
        return word("false", Kind::boolean);
      case 'n':
        return word("null", Kind::null);
      default:
        return {Kind::number, number(), {}};
    }
  }

  Value word(std::string_view expected, Kind kind) {
    if (text_.substr(at_, expected.size()) != expected) error("expected a value");
    at_ += expected.size();
    return {kind, std::string(expected), {}};
  }

  Value array(int depth) {
    Value out{Kind::array, "", {}};
    expect('[');
    skip_space();
    if (accept(']')) return out;
    do out.members.push_back({"", read(depth + 1)});
    while (skip_space(), accept(','));
    expect(']');
    return out;
  }

  Value object(int depth) {
    Value out{Kind::object, "", {}};
    expect('{');
    skip_space();
    if (accept('}')) return out;
    do {
      skip_space();
      std::string name = string();
      expect(':');
      out.members.push_back({std::move(name), read(depth + 1)});
      skip_space();
    } while (accept(','));
    expect('}');
    refuse_duplicates(out);
    return out;
  }

  void refuse_duplicates(const Value& object) const {
    std::vector<std::string_view> names;
    for (const auto& [name, value] : object.members) names.push_back(name);
    std::sort(names.begin(), names.end());
    const auto twice = std::adjacent_find(names.begin(), names.end());
    if (twice != names.end()) error("the name " + printable(*twice) + " appears twice in the object that ends");
  }

  std::string number() {
    const size_t start = at_;
    accept('-');
    if (!accept('0')) digits();
    if (accept('.')) digits();
    if (accept('e') || accept('E')) {
      if (!accept('+')) accept('-');
      digits();
    }
    return std::string(text_.substr(start, at_ - start));
  }
  void digits() {
    if (peek() < '0' || peek() > '9') error("expected a value");
    while (peek() >= '0' && peek() <= '9') at_++;
  }

  std::string string() {
    if (!accept('"')) error("expected a string");
    std::string out;
    while (!accept('"')) {
      if (at_ >= text_.size()) error("a string does not end");
      const char c = text_[at_++];
      if (uint8_t(c) < 0x20) error("a control character in a string");
      if (c == '\\')
        escape(out);
      else
        out += c;
    }
    return out;
  }

  void escape(std::string& out) {
    constexpr std::string_view names = "\"\\/bfnrt", meanings = "\"\\/\b\f\n\r\t";
    const char c = peek();
    at_++;
    if (c == 'u') return unicode(out);
    const size_t i = c == '\0' ? std::string_view::npos : names.find(c);
    if (i == std::string_view::npos) error("an unknown escape in a string");
    out += meanings[i];
  }

  void unicode(std::string& out) {
    uint32_t c = hex4();
    if (c >= 0xD800 && c < 0xDC00 && text_.substr(at_, 2) == "\\u") {
      at_ += 2;
      const uint32_t low = hex4();
      if (low < 0xDC00 || low > 0xDFFF) error("a broken surrogate pair");
      c = 0x10000 + ((c - 0xD800) << 10) + (low - 0xDC00);
    } else if (c >= 0xD800 && c <= 0xDFFF) {
      error("a broken surrogate pair");
    }
    append_utf8(c, out);
  }

  uint32_t hex4() {
    uint32_t value = 0;
    const char* begin = text_.data() + at_;
    const char* end = begin + std::min<size_t>(4, text_.size() - at_);
    if (std::from_chars(begin, end, value, 16).ptr != begin + 4) error("expected four hexadecimal digits");
    at_ += 4;
    return value;
  }

  static void append_utf8(uint32_t c, std::string& out) {
    if (c < 0x80) {
      out += char(c);
      return;
    }
    const int tails = c < 0x800 ? 1 : c < 0x10000 ? 2 : 3;
    out += char((0xFF00 >> (tails + 1) & 0xFF) | c >> 6 * tails);
    for (int i = tails - 1; i >= 0; i--) out += char(0x80 | (c >> 6 * i & 0x3F));
  }

  std::string_view text_;
  size_t at_ = 0, values_ = 0;
};

Value parse(std::string_view text) { return Parser(text).document(); }

const Value* Value::find(std::string_view name) const {
  for (const auto& [key, value] : members) {
    if (key == name) return &value;
  }
  return nullptr;
}

const Value& Value::member(std::string_view name, Kind wanted) const {
  constexpr const char* kinds[] = {"null", "a boolean", "a number", "a string", "an array", "an object"};
  const Value* value = find(name);
  if (!value) fail(printable(name) + " is missing");
  if (value->kind != wanted) fail(printable(name) + " is " + kinds[int(value->kind)] + " where " + kinds[int(wanted)] + " is needed");
  return *value;
}

const std::string& Value::string(std::string_view name) const { return member(name, Kind::string).text; }

double Value::number(std::string_view name) const {
  const std::string& text = member(name, Kind::number).text;
  double value = 0;
#ifdef __cpp_lib_to_chars
  const bool read = std::from_chars(text.data(), text.data() + text.size(), value).ec == std::errc();
#else  // libc++ before 20
  std::istringstream in(text);
  in.imbue(std::locale::classic());  // a decimal point, whatever the user's language
  const bool read = bool(in >> value);
#endif
  if (!read) fail(printable(name) + " is out of range: " + text);
  return value;
}

uint64_t Value::integer(std::string_view name) const { return parse_u64(member(name, Kind::number).text, name); }

uint64_t parse_u64(std::string_view digits, std::string_view name) {
  uint64_t value = 0;
  const char* end = digits.data() + digits.size();
  const auto [stopped, error] = std::from_chars(digits.data(), end, value);
  if (error != std::errc() || stopped != end) fail(printable(name) + " is no unsigned 64-bit integer: " + printable(digits));
  return value;
}

}  // namespace tq::json
