// The list of packed matrices: its JSON, and every rule of docs/format.md with its own fault and its own words.
#include <algorithm>
#include <map>

#include "check.h"
#include "gguf/gguf.h"
#include "gguf/json.h"
#include "gguf_builder.h"

using tq::Cause;
namespace json = tq::json;

TEST("JSON values are read as the grammar says") {
  const json::Value value =
      json::parse(" {\"a\": [1, -2.5e+3, true, false, null, {}, []], \"b\\n\\u00e9\\ud83d\\ude00\\/\": \"x\\\"\\\\\"} ");
  const auto& a = value.member("a", json::Kind::array).members;
  CHECK_EQ(a.size(), size_t{7});
  CHECK(a[1].value.text == "-2.5e+3" && a[2].value.kind == json::Kind::boolean && a[4].value.kind == json::Kind::null);
  CHECK(value.string("b\n\xC3\xA9\xF0\x9F\x98\x80/") == "x\"\\");
  CHECK_EQ(json::parse("{\"n\": 18446744073709551615}").integer("n"), ~uint64_t{0});
  CHECK_EQ(json::parse("{\"n\": -0.1}").number("n"), -0.1);
}

TEST("what is no JSON is refused at its byte") {
  const std::pair<const char*, const char*> faults[] = {
      {"", "expected a value at byte 0"},
      {"{", "expected a string at byte 1"},
      {"{}x", "unexpected text after the end at byte 2"},
      {"[1,]", "expected a value at byte 3"},
      {"{\"a\" 1}", "expected ':' at byte 5"},
      {"{\"a\": 1 \"b\"", "expected '}' at byte 8"},
      {"[1 2]", "expected ']' at byte 3"},
      {"[01]", "expected ']' at byte 2"},
      {"[1.]", "expected a value at byte 3"},
      {"[1e]", "expected a value at byte 3"},
      {"[+1]", "expected a value"},
      {"[-]", "expected a value"},
      {"[NaN]", "expected a value"},
      {"[tru]", "expected a value"},
      {"\"abc", "a string does not end"},
      {"\"\\", "an unknown escape"},
      {"\"\\x\"", "an unknown escape"},
      {"\"\\u12g4\"", "four hexadecimal digits"},
      {"\"\\u12", "four hexadecimal digits"},
      {"\"\\ud800\"", "a broken surrogate pair"},
      {"\"\\ud800\\u0041\"", "a broken surrogate pair"},
      {"\"\\udc00\"", "a broken surrogate pair"},
      {"\"\n\"", "a control character"},
      {"\"\xff\"", "not UTF-8"},
      {"{\"a\":1,\"a\":2}", "the name \"a\" appears twice"},
  };
  for (const auto& [text, words] : faults) CHECK_THROWS(json::parse(text), Cause::bad_file, words);
}

TEST("JSON is bounded in depth, length and number of values") {
  CHECK_THROWS(json::parse(std::string(1 << 20, '[')), Cause::bad_file, "nested more than 16 deep");
  CHECK_THROWS(json::parse(std::string((16 << 20) + 1, ' ')), Cause::bad_file, "longer than 16 MiB");
  std::string many = "[0";
  for (int i = 0; i < 1 << 20; i++) many += ",0";
  CHECK_THROWS(json::parse(many + "]"), Cause::bad_file, "more than 1048576 values");
}

TEST("JSON members of the wrong kind or range are named") {
  const json::Value value = json::parse(R"({"s": "x", "f": 1.5, "neg": -1, "big": 18446744073709551616, "huge": 1e999, "e": 1e2})");
  CHECK_THROWS(value.integer("none"), Cause::bad_file, "\"none\" is missing");
  CHECK_THROWS(value.integer("s"), Cause::bad_file, "\"s\" is a string where a number is needed");
  CHECK_THROWS(value.string("f"), Cause::bad_file, "\"f\" is a number where a string is needed");
  for (const char* name : {"f", "neg", "big", "e"}) CHECK_THROWS(value.integer(name), Cause::bad_file, "is no unsigned 64-bit integer");
  CHECK_THROWS(value.number("huge"), Cause::bad_file, "\"huge\" is out of range: 1e999");
}

// ---- packed matrices ----

// A whole description of one packed matrix, 70 x 8 at 2 bits with 3 outliers; tests change one thing of it.
struct Parts {
  std::map<std::string, std::string> entry{{"bits", "2"},     {"n_out", "70"},  {"n_in", "8"}, {"scale", "0.5"}, {"rotation", "\"none\""},
                                           {"seed", "\"1\""}, {"outliers", "3"}};
  std::string list;  // stated instead of the one made from the entry where not empty
  std::vector<uint16_t> row_scale = std::vector<uint16_t>(128, 0);
  std::vector<int8_t> codebook = std::vector<int8_t>(32);
  std::vector<int32_t> ptr = std::vector<int32_t>(71, 3);
  std::vector<uint16_t> col{1, 7, 0}, val{0x3C00, 0xBC00, 0x4000};
  build::File file;

  Parts() {
    std::fill_n(row_scale.begin(), 70, uint16_t(0x3800));
    for (int i = 0; i < 32; i++) codebook[size_t(i)] = int8_t(i % 16);
    ptr[0] = 0, ptr[1] = 2;
  }

  void state(const std::string& field, const std::string& value) { entry[field] = value; }
  std::string fields() const {
    std::string text;
    for (const auto& [name, value] : entry) text += (text.empty() ? "\"" : ", \"") + name + "\": " + value;
    return text;
  }
  build::Tensor plane(const std::string& name, uint32_t type, uint64_t count, const std::string& data) {
    return {name, type, {count}, data};
  }

  std::string bytes(void (*change_file)(build::File&)) {
    file.text("turboquant.tensors", list.empty() ? "{\"w\": {" + fields() + "}}" : list);
    file.tensors.push_back(plane("w.tqn", build::I8, 256, std::string(256, '\x5A')));
    file.tensors.push_back(plane("w.tqn_scale", build::F16, row_scale.size(), build::raw(row_scale)));
    file.tensors.push_back(plane("w.tqn_cb", build::I8, codebook.size(), build::raw(codebook)));
    file.tensors.push_back(plane("w.tqn_out_ptr", build::I32, ptr.size(), build::raw(ptr)));
    file.tensors.push_back(plane("w.tqn_out_col", build::I16, col.size(), build::raw(col)));
    file.tensors.push_back(plane("w.tqn_out_val", build::F16, val.size(), build::raw(val)));
    if (change_file)
      change_file(file);
    else
      file.key("turboquant.version", build::u32, build::raw(tqn::kVersion));
    return file.bytes();
  }
};

static void load(const std::string& bytes) {
  const build::OnDisk disk(bytes);
  tq::gguf::TqnTensors packed(tq::gguf::File::open(disk.path()));
}

static void refuse(const char* words, void (*change)(Parts&), void (*change_file)(build::File&) = nullptr, Cause cause = Cause::bad_file) {
  Parts parts;
  change(parts);
  CHECK_THROWS(load(parts.bytes(change_file)), cause, words);
}

TEST("the unchanged matrix is accepted") { load(Parts().bytes(nullptr)); }

TEST("version and list") {
  refuse(
      "turboquant.version is 1; this release reads version 2: convert it again", [](Parts&) {},
      [](build::File& f) { f.key("turboquant.version", build::u32, build::raw(uint32_t{1})); }, Cause::unsupported);
  const auto none = [](Parts&) {};
  refuse(
      "turboquant.version is 3; this release reads version 2", none,
      [](build::File& f) { f.key("turboquant.version", build::u32, build::raw(uint32_t{3})); }, Cause::unsupported);
  refuse(
      "turboquant.version is 0", none, [](build::File& f) { f.key("turboquant.version", build::u32, build::raw(uint32_t{0})); },
      Cause::unsupported);
  refuse("\"turboquant.version\" is not an integer", none, [](build::File& f) { f.text("turboquant.version", "1"); });
  refuse("\"turboquant.version\" is missing", none, [](build::File&) {});
  refuse("is not a JSON object", [](Parts& p) { p.list = std::string("[]"); });
  refuse("JSON: expected", [](Parts& p) { p.list = std::string("{\"w\": "); });
  refuse("the name \"w\" appears twice", [](Parts& p) { p.list = std::string("{\"w\": {}, \"w\": {}}"); });
  refuse("its entry in the list is not an object", [](Parts& p) { p.list = std::string("{\"w\": 1}"); });
  refuse("matrix \"w\": \"bits\" is missing", [](Parts& p) { p.list = std::string("{\"w\": {}}"); });
  refuse("belongs to no matrix", [](Parts& p) { p.list = std::string("{}"); });
}

TEST("fields of an entry") {
  for (const char* bits : {"0", "5", "7", "9", "64", "4294967298"}) {
    Parts parts;
    parts.state("bits", bits);
    CHECK_THROWS(load(parts.bytes(nullptr)), Cause::bad_file, ("\"bits\" is " + std::string(bits)).c_str());
  }
  refuse("\"bits\" is no unsigned", [](Parts& p) { p.state("bits", "2.0"); });
  refuse("\"n_out\" is no unsigned", [](Parts& p) { p.state("n_out", "-70"); });
  refuse("\"n_out\" is too large: 9223372036854775808", [](Parts& p) { p.state("n_out", "9223372036854775808"); });
  refuse("n_out is 9223372036854775807", [](Parts& p) { p.state("n_out", "9223372036854775807"); });
  refuse("n_out is 0", [](Parts& p) { p.state("n_out", "0"); });
  refuse("n_in is 0", [](Parts& p) { p.state("n_in", "0"); });
  refuse("n_in is 6, must be a multiple of 4", [](Parts& p) { p.state("n_in", "6"); });
  refuse("n_in is 65540", [](Parts& p) { p.state("n_in", "65540"); });
  refuse("scale is 0", [](Parts& p) { p.state("scale", "0"); });
  refuse("scale is -", [](Parts& p) { p.state("scale", "-1"); });
  refuse("scale is inf", [](Parts& p) { p.state("scale", "1e300"); });
  refuse("weights would overflow", [](Parts& p) { p.state("scale", "3e38"); });
  refuse("\"scale\" is out of range", [](Parts& p) { p.state("scale", "1e999"); });
  refuse("\"scale\" is a string where a number is needed", [](Parts& p) { p.state("scale", "\"1\""); });
  refuse("\"rotation\" is unknown: \"hadamard\"", [](Parts& p) { p.state("rotation", "\"hadamard\""); });
  refuse("\"seed\" is a number where a string is needed", [](Parts& p) { p.state("seed", "1"); });
  refuse("\"seed\" is no unsigned 64-bit integer: \"18446744073709551616\"", [](Parts& p) { p.state("seed", "\"18446744073709551616\""); });
  refuse("\"seed\" is no unsigned", [](Parts& p) { p.state("seed", "\"\""); });
  refuse("outlier count is 561", [](Parts& p) { p.state("outliers", "561"); });
}

TEST("sizes of planes") {
  refuse("plane codes has 256 bytes, its shape asks for 512", [](Parts& p) { p.state("n_in", "16"); });
  refuse("plane codes has 256 bytes, its shape asks for 384", [](Parts& p) { p.state("bits", "3"); });
  refuse("plane codes has 256 bytes, its shape asks for 128", [](Parts& p) { p.state("n_out", "64"); });
  refuse("plane row_scale has 254 bytes, its shape asks for 256", [](Parts& p) { p.row_scale.pop_back(); });
  refuse("plane codebook has 31 bytes, its shape asks for 32", [](Parts& p) { p.codebook.pop_back(); });
  refuse("plane out_ptr has 280 bytes, its shape asks for 284", [](Parts& p) { p.ptr.pop_back(); });
  refuse("plane out_col has 4 bytes, its shape asks for 6", [](Parts& p) { p.col.pop_back(); });
  refuse("plane out_val has 4 bytes, its shape asks for 6", [](Parts& p) { p.val.pop_back(); });
  refuse("plane out_ptr has 284 bytes, its shape asks for 0", [](Parts& p) { p.state("outliers", "0"); });
}

static void with_version(build::File& f) { f.key("turboquant.version", build::u32, build::raw(tqn::kVersion)); }

TEST("missing, mistyped and stray planes") {
  const auto none = [](Parts&) {};
  refuse("plane codes has 0 bytes", none, [](build::File& f) { with_version(f), f.tensors.erase(f.tensors.begin()); });
  refuse("plane row_scale has 0 bytes", none, [](build::File& f) { with_version(f), f.tensors.erase(f.tensors.begin() + 1); });
  refuse("plane codebook has 0 bytes", none, [](build::File& f) { with_version(f), f.tensors.erase(f.tensors.begin() + 2); });
  refuse("plane out_val has 0 bytes", none, [](build::File& f) { with_version(f), f.tensors.pop_back(); });
  refuse("\"w.tqn_scale\" has the type I16 where F16 is needed", none,
         [](build::File& f) { with_version(f), f.tensors[1].type = build::I16; });
  refuse("\"v.tqn_cb\" belongs to no matrix", none,
         [](build::File& f) { with_version(f), f.tensors.push_back({"v.tqn_cb", build::I8, {64}, std::string(64, 'x')}); });
  refuse("matrix \"w\" is stored twice", none,
         [](build::File& f) { with_version(f), f.tensors.push_back({"w", build::F32, {1}, "1234"}); });
}

TEST("contents of planes") {
  refuse("row_scale[3] is nan", [](Parts& p) { p.row_scale[3] = 0x7E00; });
  refuse("row_scale[69] is inf", [](Parts& p) { p.row_scale[69] = 0x7C00; });
  refuse("row_scale[0] is -", [](Parts& p) { p.row_scale[0] = 0x8001; });
  refuse("row_scale[0] is 1.0009", [](Parts& p) { p.row_scale[0] = 0x3C01; });
  refuse("row_scale[70] of a padding row", [](Parts& p) { p.row_scale[70] = 1; });
  refuse("codebook[9] is -128, must be in [0, 15]", [](Parts& p) { p.codebook[9] = -128; });
  refuse("out_ptr[0] is 1", [](Parts& p) { p.ptr[0] = 1; });
  refuse("out_ptr[70] is 2, the outlier count is 3", [](Parts& p) { p.ptr[70] = 2; });
  refuse("out_ptr decreases at row 1", [](Parts& p) { p.ptr[2] = 1; });
  refuse("out_ptr decreases at row 40", [](Parts& p) { p.ptr[40] = 1 << 30; });
  refuse("out_ptr decreases at row 39", [](Parts& p) { p.ptr[40] = -1; });
  refuse("out_col[1] is 8, n_in is 8", [](Parts& p) { p.col[1] = 8; });
  refuse("out_col does not increase at entry 1 of row 0", [](Parts& p) { p.col[1] = 1; });
  refuse("out_val[2] is not finite", [](Parts& p) { p.val[2] = 0xFC00; });
}
