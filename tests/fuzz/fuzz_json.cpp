// The JSON reader: an Error or a tree, whatever the text.
#include "fuzz/input.h"
#include "gguf/json.h"

static void walk(const tq::json::Value& value, std::string_view name) {
  for (const auto& member : value.members) {
    walk(member.value, member.name);
    fuzz::allow_errors([&] { (void)value.integer(member.name); });
    fuzz::allow_errors([&] { (void)value.number(member.name); });
    fuzz::allow_errors([&] { (void)value.string(member.name); });
  }
  fuzz::allow_errors([&] { (void)tq::json::parse_u64(value.text, name); });
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::allow_errors([&] { walk(tq::json::parse({reinterpret_cast<const char*>(data), size}), "value"); });
  return 0;
}
