// A whole model (tests/data/v2.tqn.gguf) with its metadata, shapes and data changed at random, opened and run: an Error or logits, and
// nothing that the sanitizers see.
#include <array>
#include <fstream>
#include <iterator>
#include <random>

#include "check.h"
#include "gguf_builder.h"
#include "model/model.h"

static std::string read_model() {
  const auto path = std::filesystem::path(__FILE__).parent_path() / ".." / "data" / "v2.tqn.gguf";
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

// Opens the file and computes the logits of three tokens, one of them alone.
static void run(const std::string& path) {
  tq::ModelOptions options;
  options.backend.threads = 1;
  const auto model = tq::Model::open(path, options);
  tq::Context context(model, {.n_ctx = 8, .n_slots = 1, .n_batch = 4, .cache = tq::CacheType::automatic});
  std::vector<float> logits(size_t(model->config().n_vocab));
  const auto pass = [&](const std::vector<int32_t>& tokens, const std::vector<int32_t>& positions, int32_t last) {
    const std::vector<int32_t> slots(tokens.size(), 0), rows{last};
    context.forward({tokens, positions, slots, rows}, logits);
  };
  pass({3, 95}, {0, 1}, 1);
  pass({7}, {2}, 0);
}

// Where changes hurt: the value of each llama.* key, the fields after each tensor's name, the small planes.
static std::vector<std::pair<size_t, size_t>> targets(const std::string& bytes, const std::string& path) {
  const auto file = tq::gguf::File::open(path);
  std::vector<std::pair<size_t, size_t>> places;
  for (const auto& [key, value] : file->metadata()) {
    if (key.starts_with("llama.")) places.emplace_back(bytes.find(key) + key.size(), 8);  // type and value
  }
  for (const auto& tensor : file->tensors()) {
    // The name stands in the checksums too, there in quotes; before this one stands its length.
    const std::string stated = build::raw(uint64_t(tensor.name.size())) + std::string(tensor.name);
    places.emplace_back(bytes.find(stated) + stated.size(), 4 + 8 * tensor.shape.size() + 4 + 8);
    if (tensor.data.size() <= 1024) places.emplace_back(tensor.offset, tensor.data.size());
  }
  return places;
}

TEST("the unchanged model runs") {
  const build::OnDisk disk(read_model());
  run(disk.path());
}

TEST("mutated models: an Error or logits, whatever the bytes") {
  const std::string good = read_model();
  const build::OnDisk disk(good);
  const auto places = targets(good, disk.path());
  const std::array<uint64_t, 10> numbers{0, 1, 2, 3, 4, 64, 0x7FFFFFFF, 0xFFFFFFFF, uint64_t{1} << 63, ~uint64_t{0}};
  std::mt19937 random(7);
  int ran = 0, refused = 0;
  for (int i = 0; i < 3000; i++) {
    std::string bytes = good;
    for (unsigned changes = 1 + random() % 3; changes; changes--) {
      const auto& [at, size] = places[random() % places.size()];
      const size_t byte = at + random() % size;
      if (random() % 2)
        bytes[byte] = char(random());
      else
        bytes.replace(byte / 4 * 4, 4, build::raw(numbers[random() % numbers.size()]).substr(0, 4));
    }
    disk.write(bytes);
    try {
      run(disk.path());
      ran++;
    } catch (const tq::Error&) {
      refused++;
    }
  }
  CHECK(ran > 100 && refused > 100);  // both kinds were really tried
}
