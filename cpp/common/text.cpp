#include "common/text.h"

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <limits>

namespace tq {

// Bytes of the well-formed UTF-8 character at the start of `s` (not empty), or 0.
static size_t utf8_length(std::string_view s) {
  const uint8_t lead = uint8_t(s[0]);
  if (lead < 0x80) return 1;
  const size_t n = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
  if (lead < 0xC2 || lead > 0xF4 || s.size() < n) return 0;
  for (size_t i = 1; i < n; i++) {
    if ((uint8_t(s[i]) & 0xC0) != 0x80) return 0;
  }
  const uint8_t second = uint8_t(s[1]);
  const bool overlong = (lead == 0xE0 && second < 0xA0) || (lead == 0xF0 && second < 0x90);
  const bool surrogate = lead == 0xED && second >= 0xA0, beyond = lead == 0xF4 && second >= 0x90;
  return overlong || surrogate || beyond ? 0 : n;
}

bool is_utf8(std::string_view bytes) {
  while (!bytes.empty()) {
    const size_t n = utf8_length(bytes);
    if (n == 0) return false;
    bytes.remove_prefix(n);
  }
  return true;
}

std::string printable(std::string_view bytes) {
  constexpr size_t limit = 100;
  constexpr char hex[] = "0123456789abcdef";
  std::string out = "\"";
  while (!bytes.empty() && out.size() <= limit) {
    const uint8_t c = uint8_t(bytes[0]);
    const size_t n = c < 0x20 || c == 0x7F ? 0 : utf8_length(bytes);
    if (n == 0)
      out.append({'\\', 'x', hex[c >> 4], hex[c & 15]});
    else
      out.append(bytes.substr(0, n));
    bytes.remove_prefix(n == 0 ? 1 : n);
  }
  return out + (bytes.empty() ? "\"" : "...\"");
}

std::string number(double value) {
  char text[32];
  const bool is_float = std::fabs(value) <= std::numeric_limits<float>::max() && double(float(value)) == value;
  for (int digits = 6; digits <= 17; digits++) {
    std::snprintf(text, sizeof text, "%.*g", digits, value);
    if (is_float ? std::strtof(text, nullptr) == float(value) : std::strtod(text, nullptr) == value) break;
  }
  return text;
}

}  // namespace tq
