// A small strict JSON reader for the lists in a file's metadata: bounded depth and size, no duplicate keys, numbers kept as text until
// asked for.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace tq::json {

enum class Kind : uint8_t { null, boolean, number, string, array, object };

struct Member;

struct Value {
  Kind kind = Kind::null;
  std::string text;             // of a string, decoded; of a number or boolean, as written
  std::vector<Member> members;  // of an object, in order; of an array, with empty names

  const Value* find(std::string_view name) const;
  // These throw Error(bad_file) "NAME is ..." unless the member exists, has that kind and fits the type.
  const Value& member(std::string_view name, Kind kind) const;
  const std::string& string(std::string_view name) const;
  double number(std::string_view name) const;
  uint64_t integer(std::string_view name) const;
};

struct Member {
  std::string name;
  Value value;
};

uint64_t parse_u64(std::string_view digits, std::string_view name);  // decimal digits only; Error(bad_file) "NAME is ..."
Value parse(std::string_view text);                                  // Error(bad_file) naming the byte where it goes wrong

}  // namespace tq::json
