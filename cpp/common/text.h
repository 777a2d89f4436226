// Text for error messages: names from a hostile file reach a terminal or Python only through `printable`.
#pragma once
#include <string>
#include <string_view>

namespace tq {

bool is_utf8(std::string_view bytes);           // well formed, without surrogates or overlong forms
std::string printable(std::string_view bytes);  // in double quotes; control characters and broken UTF-8 as \xNN; cut after 100 bytes
std::string number(double value);               // in short: 0.5, 1e-09, nan; enough digits to tell it from others

}  // namespace tq
