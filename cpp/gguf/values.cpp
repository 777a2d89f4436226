#include "gguf/values.h"

namespace tq::gguf {

static constexpr int kMaxArrayDepth = 4;

// Bytes of one element, or 0 where elements differ in length.
static uint64_t fixed_size(ValueType type) {
  switch (type) {
    case ValueType::u8:
    case ValueType::i8:
    case ValueType::boolean:
      return 1;
    case ValueType::u16:
    case ValueType::i16:
      return 2;
    case ValueType::u32:
    case ValueType::i32:
    case ValueType::f32:
      return 4;
    case ValueType::u64:
    case ValueType::i64:
    case ValueType::f64:
      return 8;
    case ValueType::string:
    case ValueType::array:
      break;
  }
  return 0;
}

static ValueType value_type(const Cursor& cursor, uint32_t type) {
  if (type > uint32_t(ValueType::f64)) cursor.fail("unknown value type " + std::to_string(type));
  return ValueType(type);
}

static bool read_bool(Cursor& cursor) {
  const auto byte = cursor.number<uint8_t>("a boolean");
  if (byte > 1) cursor.fail("a boolean has the value " + std::to_string(byte));
  return byte != 0;
}

static Array read_array(Cursor& cursor, int depth);

// Walks over elements whose length is known only by reading them.
static void skip_elements(Cursor& cursor, ValueType element, uint64_t count, int depth) {
  for (uint64_t i = 0; i < count; i++) {
    if (element == ValueType::string)
      cursor.string("an array's string");
    else if (element == ValueType::array)
      read_array(cursor, depth + 1);
    else
      read_bool(cursor);
  }
}

static Array read_array(Cursor& cursor, int depth) {
  if (depth > kMaxArrayDepth) cursor.fail("arrays are nested more than " + std::to_string(kMaxArrayDepth) + " deep");
  Array array;
  array.element = value_type(cursor, cursor.number<uint32_t>("an array's element type"));
  array.count = cursor.number<uint64_t>("an array's length");
  const uint64_t size = fixed_size(array.element);
  const uint64_t least = size ? size : array.element == ValueType::string ? 8 : 12;  // an empty string, an empty array
  if (array.count > cursor.remaining() / least) {
    cursor.fail("an array of " + std::to_string(array.count) + " elements does not fit the " + std::to_string(cursor.remaining()) +
                " bytes left");
  }
  Cursor walk = cursor;
  if (size == 0 || array.element == ValueType::boolean)
    skip_elements(walk, array.element, array.count, depth);
  else
    walk.take(array.count * size, "an array");
  array.bytes = cursor.take(walk.offset() - cursor.offset(), "an array");
  return array;
}

static Value read_value(Cursor& cursor, ValueType type, int depth) {
  switch (type) {
    case ValueType::u8:
      return {type, uint64_t{cursor.number<uint8_t>("a value")}};
    case ValueType::u16:
      return {type, uint64_t{cursor.number<uint16_t>("a value")}};
    case ValueType::u32:
      return {type, uint64_t{cursor.number<uint32_t>("a value")}};
    case ValueType::u64:
      return {type, cursor.number<uint64_t>("a value")};
    case ValueType::i8:
      return {type, int64_t{cursor.number<int8_t>("a value")}};
    case ValueType::i16:
      return {type, int64_t{cursor.number<int16_t>("a value")}};
    case ValueType::i32:
      return {type, int64_t{cursor.number<int32_t>("a value")}};
    case ValueType::i64:
      return {type, cursor.number<int64_t>("a value")};
    case ValueType::f32:
      return {type, double{cursor.number<float>("a value")}};
    case ValueType::f64:
      return {type, cursor.number<double>("a value")};
    case ValueType::boolean:
      return {type, read_bool(cursor)};
    case ValueType::string:
      return {type, cursor.string("a string")};
    case ValueType::array:
      return {type, read_array(cursor, depth)};
  }
  cursor.fail("unknown value type");
}

Value read_value(Cursor& cursor, uint32_t type) { return read_value(cursor, value_type(cursor, type), 1); }

std::vector<Value> elements_of(const Array& array) {
  static const std::string already_checked;  // no error can name a file here: open() has walked these bytes
  Cursor cursor(already_checked, array.bytes);
  std::vector<Value> values(array.count);
  for (Value& value : values) value = read_value(cursor, array.element, 1);
  return values;
}

}  // namespace tq::gguf
