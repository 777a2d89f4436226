// The reader against whole, truncated, contradictory and mutated files: it must read the first kind and name the fault of the others.
#include <random>

#include "check.h"
#include "format/reference.h"
#include "gguf/gguf.h"
#include "gguf_builder.h"

using tq::Cause;
using tq::gguf::File;
using tq::gguf::TqnTensors;

static const char* kEntry =
    R"({"bits": 2, "n_out": 70, "n_in": 8, "scale": 0.5, "rotation": "hartley-hadamard", "seed": "18446744073709551615", "outliers": 3})";

static void add_packed_matrix(build::File& file) {
  std::mt19937 random(1);
  std::string codes(2 * 2 * 64, '\0'), codebook(32, '\0');
  for (char& byte : codes) byte = char(random());
  for (int i = 0; i < 32; i++) codebook[size_t(i)] = char(i % 16);
  std::vector<uint16_t> scales(128, 0);
  std::fill_n(scales.begin(), 70, uint16_t(0x3800));  // 0.5
  std::vector<int32_t> ptr(71, 3);
  ptr[0] = 0, ptr[1] = 2;
  file.text("turboquant.tensors", std::string("{\"w\": ") + kEntry + "}");
  file.key("turboquant.version", build::u32, build::raw(tqn::kVersion));
  file.tensors.push_back({"w.tqn", build::I8, {128, 2}, codes});
  file.tensors.push_back({"w.tqn_scale", build::F16, {128}, build::raw(scales)});
  file.tensors.push_back({"w.tqn_cb", build::I8, {32}, codebook});
  file.tensors.push_back({"w.tqn_out_ptr", build::I32, {71}, build::raw(ptr)});
  file.tensors.push_back({"w.tqn_out_col", build::I16, {3}, build::raw(std::vector<uint16_t>{1, 7, 0})});
  file.tensors.push_back({"w.tqn_out_val", build::F16, {3}, build::raw(std::vector<uint16_t>{0x3C00, 0xBC00, 0x4000})});
}

// One of everything: each scalar type, arrays of numbers, booleans, strings and arrays, an ordinary tensor and a packed matrix.
static build::File sample() {
  build::File file;
  file.text("general.architecture", "llama");
  file.key("a.u8", build::u8, build::raw(uint8_t{200}));
  file.key("a.i8", build::i8, build::raw(int8_t{-100}));
  file.key("a.u16", build::u16, build::raw(uint16_t{60000}));
  file.key("a.i16", build::i16, build::raw(int16_t{-30000}));
  file.key("a.u32", build::u32, build::raw(uint32_t{4000000000}));
  file.key("a.i32", build::i32, build::raw(int32_t{-2000000000}));
  file.key("a.u64", build::u64, build::raw(uint64_t{1} << 63));
  file.key("a.i64", build::i64, build::raw(int64_t{-1}));
  file.key("a.f32", build::f32, build::raw(0.25f));
  file.key("a.f64", build::f64, build::raw(1e300));
  file.key("a.bool", build::boolean, build::raw(uint8_t{1}));
  file.key("a.nan", build::f32, build::raw(NAN));
  file.list("b.numbers", build::u32, 3, build::raw(std::vector<uint32_t>{5, 6, 7}));
  file.list("b.flags", build::boolean, 2, build::raw(std::vector<uint8_t>{1, 0}));
  file.list("b.texts", build::string, 2, build::raw(uint64_t{2}) + "hi" + build::raw(uint64_t{0}));
  file.list("b.nested", build::array, 1, build::raw(build::i8) + build::raw(uint64_t{2}) + "ab");
  add_packed_matrix(file);
  file.tensors.push_back({"norm", build::F32, {4}, build::raw(std::vector<float>{1, 2, 3, 4})});
  return file;
}

// Reads all that the engine would read.
static void use(const std::string& path) {
  const auto file = File::open(path);
  for (const auto& [key, value] : file->metadata()) {
    if (const auto* array = std::get_if<tq::gguf::Array>(&value.data)) tq::gguf::elements_of(*array);
  }
  uint64_t sum = 0;
  for (const auto& tensor : file->tensors()) {
    for (uint8_t byte : tensor.data) sum += byte;
  }
  CHECK(sum > 0 || file->tensors().empty() || sum == 0);
  const TqnTensors packed(file);
  for (const auto& [name, matrix] : packed.all()) {
    std::vector<double> row(size_t(matrix.n_in));
    tq::reference::decode_row(matrix, 0, row.data());
    tq::reference::decode_row(matrix, matrix.n_out - 1, row.data());
  }
}

TEST("a whole file is read as it was written") {
  const build::OnDisk disk(sample().bytes());
  const auto file = File::open(disk.path());
  CHECK(file->string("general.architecture") == "llama");
  CHECK_EQ(file->u64("a.u8"), 200u);
  CHECK_EQ(file->u64("a.u16"), 60000u);
  CHECK_EQ(file->u64("a.u32"), 4000000000u);
  CHECK_EQ(file->u64("a.u64"), uint64_t{1} << 63);
  CHECK_EQ(file->f64("a.f32"), 0.25);
  CHECK_EQ(file->f64("a.f64"), 1e300);
  CHECK(file->boolean("a.bool", false));
  CHECK(file->u64s("b.numbers") == (std::vector<uint64_t>{5, 6, 7}));
  CHECK(file->u64s("b.flags") == (std::vector<uint64_t>{1, 0}));
  CHECK(file->u64s("a.u8") == std::vector<uint64_t>{200});
  CHECK(file->strings("b.texts") == (std::vector<std::string_view>{"hi", ""}));
  CHECK_EQ(std::get<int64_t>(file->get("a.i16")->data), -30000);
  CHECK_EQ(file->tensors().size(), size_t{7});
  float norm[4];
  std::memcpy(norm, file->find("norm")->data.data(), sizeof norm);
  CHECK_EQ(norm[3], 4.f);
  CHECK(!file->find("nor") && !file->find("norm2") && !file->get("a"));
}

TEST("a packed matrix is found with all its planes") {
  const build::OnDisk disk(sample().bytes());
  const auto file = File::open(disk.path());
  const TqnTensors packed(file);
  CHECK_EQ(packed.all().size(), size_t{1});
  const tq::TqnMatrix& w = *packed.find("w");
  CHECK(w.k == 2 && w.n_out == 70 && w.n_in == 8 && w.scale == 0.5f && w.rotation == tq::Rotation::hartley_hadamard &&
        w.seed == ~uint64_t{0});
  CHECK(w.codes == file->find("w.tqn")->data.data());
  CHECK(w.outliers.count == 3 && w.outliers.ptr[1] == 2 && w.outliers.col(1) == 7 && w.outliers.val[2] == 0x4000);
  CHECK(!packed.find("v"));
}

TEST("typed access names the key and what is wrong with it") {
  const build::OnDisk disk(sample().bytes());
  const auto file = File::open(disk.path());
  CHECK_THROWS(file->u64("missing"), Cause::bad_file, "\"missing\" is missing");
  CHECK_THROWS(file->u64("a.i8"), Cause::bad_file, "\"a.i8\" is negative: -100");
  CHECK_THROWS(file->u64("a.f32"), Cause::bad_file, "\"a.f32\" is not an integer");
  CHECK_THROWS(file->f64("a.u8"), Cause::bad_file, "\"a.u8\" is not a floating-point number");
  CHECK_THROWS(file->f64("a.nan", 1.0), Cause::bad_file, "\"a.nan\" is not finite");
  CHECK_THROWS(file->boolean("a.u8", true), Cause::bad_file, "\"a.u8\" is not a boolean");
  CHECK_THROWS(file->string("a.u8"), Cause::bad_file, "\"a.u8\" is not a string");
  CHECK_THROWS(file->strings("b.numbers"), Cause::bad_file, "\"b.numbers\" is not an array of strings");
  CHECK_EQ(file->u64("missing", 9), 9u);
  CHECK(file->u64s("missing").empty() && file->strings("missing").empty());
}

TEST("a file cut anywhere is refused") {
  const std::string bytes = sample().bytes();
  const build::OnDisk disk;
  for (size_t size = 0; size < bytes.size(); size++) {
    disk.write(bytes.substr(0, size));
    CHECK_THROWS(File::open(disk.path()), Cause::bad_file, size < 4 ? "the file ends inside the magic number" : disk.path().c_str());
  }
}

TEST("every number of the header at 0, 1, its maximum and values that wrap: refused or harmless") {
  build::File file = sample();
  const std::string good = file.bytes();
  const build::OnDisk disk;
  for (const build::Field& field : file.fields) {
    for (uint64_t value : {uint64_t{0}, uint64_t{1}, uint64_t{5}, uint64_t{0x7FFFFFFF}, uint64_t{0xFFFFFFFF}, uint64_t(good.size()),
                           uint64_t{1} << 32, uint64_t{1} << 60, uint64_t{1} << 61, uint64_t{1} << 62, uint64_t{1} << 63,
                           ~uint64_t{0} / 34 + 1, ~uint64_t{0} - 31, ~uint64_t{0} - 7, ~uint64_t{0}}) {
      std::string bad = good;
      bad.replace(field.at, field.width, build::raw(value).substr(0, field.width));
      disk.write(bad);
      const bool impossible = value == ~uint64_t{0};  // no field may be all ones
      try {
        use(disk.path());
        if (impossible) check::fail(__FILE__, __LINE__, "accepted: " + field.what + " at byte " + std::to_string(field.at));
      } catch (const tq::Error& e) {
        CHECK(std::strstr(e.what(), disk.path().c_str()));
      }
    }
  }
}

// One fault each: a change of the sample's bytes or parts, and the words that must name it.
template <class Change>
static void refuse(const char* words, Change change, Cause cause = Cause::bad_file) {
  build::File file = sample();
  change(file);
  const build::OnDisk disk(file.bytes());
  CHECK_THROWS(use(disk.path()), cause, words);
}

TEST("faults of the container are named") {
  refuse("GGUF version 1 is unknown", [](auto& f) { f.version = 1; });
  refuse("GGUF version 4 is unknown", [](auto& f) { f.version = 4; });
  refuse("big-endian", [](auto& f) { f.version = 3u << 24; });
  refuse("metadata key \"a.u8\" appears twice", [](auto& f) { f.key("a.u8", build::u8, "x"); });
  refuse("tensor \"norm\" appears twice", [](auto& f) { f.tensors.push_back(f.tensors.back()); });
  refuse("the key is empty", [](auto& f) { f.key("", build::u8, "x"); });
  refuse("the key has 65536 bytes", [](auto& f) { f.key(std::string(65536, 'k'), build::u8, "x"); });
  refuse("the key \"\\xff\" is not UTF-8", [](auto& f) { f.key("\xff", build::u8, "x"); });
  refuse("the name is empty", [](auto& f) { f.tensors.back().name = ""; });
  refuse("the name has 64 bytes; the limit is 63", [](auto& f) { f.tensors.back().name = std::string(64, 'n'); });
  refuse("the name \"\\xed\\xa0\\x80\" is not UTF-8", [](auto& f) { f.tensors.back().name = "\xed\xa0\x80"; });
  refuse("unknown value type 13", [](auto& f) { f.key("k", 13, "xxxxxxxx"); });
  refuse("unknown value type 99", [](auto& f) { f.list("k", 99, 1, "x"); });
  refuse("a boolean has the value 2", [](auto& f) { f.key("k", build::boolean, "\2"); });
  refuse("a boolean has the value 7", [](auto& f) { f.list("k", build::boolean, 1, "\7"); });
  refuse("nested more than 4 deep", [](auto& f) {
    std::string nested;
    for (int i = 0; i < 4; i++) nested += build::raw(build::array) + build::raw(uint64_t{1});
    f.list("k", build::array, 1, nested + build::raw(build::u8) + build::raw(uint64_t{0}));
  });
  refuse("does not fit", [](auto& f) { f.list("k", build::u64, uint64_t{1} << 61, ""); });
}

TEST("faults of tensors are named") {
  refuse("has 0 dimensions", [](auto& f) { f.tensors.back().shape = {}; });
  refuse("has 5 dimensions", [](auto& f) { f.tensors.back().shape = {4, 1, 1, 1, 1}; });
  refuse("a dimension is 0", [](auto& f) { f.tensors.back().shape = {0}; });
  refuse("the number of elements overflows", [](auto& f) { f.tensors.back().shape = {uint64_t{1} << 32, uint64_t{1} << 32}; });
  refuse("the number of elements overflows", [](auto& f) { f.tensors.back().shape = {4, ~uint64_t{0}}; });
  refuse("its size in bytes overflows", [](auto& f) { f.tensors.back().shape = {uint64_t{1} << 62}; });
  refuse("unknown tensor type 4", [](auto& f) { f.tensors.back().type = 4; });
  refuse("not whole Q4_0 blocks of 32", [](auto& f) { f.tensors.back().type = build::Q4_0; });
  refuse("reach past the end", [](auto& f) { f.tensors.back().shape = {5}; });
  refuse("is not a multiple of the alignment 32", [](auto& f) { f.offsets = {4}; });
  refuse("reach past the end", [](auto& f) { f.offsets = {uint64_t{1} << 40}; });
  refuse("reach past the end", [](auto& f) { f.offsets = {~uint64_t{31}}; });
  refuse("\"w.tqn\" and \"w.tqn_scale\" overlap", [](auto& f) { f.offsets = {0, 224}; });
  refuse("overlap", [](auto& f) { f.offsets = {0, 0}; });
  refuse("general.alignment is 0", [](auto& f) { f.key("general.alignment", build::u32, build::raw(uint32_t{0})); });
  refuse("general.alignment is 4", [](auto& f) { f.key("general.alignment", build::u32, build::raw(uint32_t{4})); });
  refuse("general.alignment is 48", [](auto& f) { f.key("general.alignment", build::u32, build::raw(uint32_t{48})); });
  refuse("general.alignment is 2147483648", [](auto& f) { f.key("general.alignment", build::u32, build::raw(uint32_t{1} << 31)); });
}

TEST("other alignments are honoured") {
  for (uint32_t alignment : {8u, 64u, 4096u}) {
    build::File file = sample();
    file.alignment = alignment;
    file.key("general.alignment", build::u32, build::raw(alignment));
    const build::OnDisk disk(file.bytes());
    use(disk.path());
    CHECK_EQ(File::open(disk.path())->data_offset() % alignment, 0u);
  }
}

TEST("files that are no files are refused") {
  CHECK_THROWS(File::open("/nonexistent/file"), Cause::io, "No such file");
  CHECK_THROWS(File::open(std::filesystem::temp_directory_path().string()), Cause::io, "is a directory");
  CHECK_THROWS(File::open("/dev/null"), Cause::io, "is not a regular file");
  const build::OnDisk disk("GGML and more than 24 bytes of something else");
  CHECK_THROWS(File::open(disk.path()), Cause::bad_file, "not a GGUF file");
}

TEST("mutated files: an Error or a result, whatever the bytes") {
  build::File file = sample();
  const std::string good = file.bytes();
  const build::OnDisk disk;
  std::mt19937 random(20);
  int accepted = 0, refused = 0;
  for (int i = 0; i < 20000; i++) {
    std::string bytes = good;
    for (unsigned flips = 1 + random() % 4; flips; flips--) {
      // Half of the changes strike a number of the header, the others any byte.
      const build::Field& field = file.fields[random() % file.fields.size()];
      const size_t at = random() % 2 ? field.at + random() % field.width : random() % bytes.size();
      bytes[at] = random() % 2 ? char(bytes[at] ^ 1 << random() % 8) : char(random());
    }
    disk.write(bytes);
    try {
      use(disk.path());
      accepted++;
    } catch (const tq::Error&) {
      refused++;
    }
  }
  CHECK(accepted > 100 && refused > 100);  // both kinds were really tried
}
