// llama.cpp's time for a token at depth, by type of its cache, without computing the prompt: the cache of the first 256 positions is
// repeated. Beside cache_depth.py, whose slot gets random keys and values.
//   llama_depth MODEL THREADS TOKENS DEPTH[,DEPTH...] TYPE[,TYPE...]      types: f16, q8_0, q4_0, of keys and values alike; flash attention
// Prints Markdown: ms a token, least and median, and the bytes that a position takes. No part of our build, which knows no llama.cpp;
// with one built in BUILD (-DBUILD_SHARED_LIBS=OFF) from LLAMA, in bash:
//   LIBRARIES="$(echo BUILD/src/libllama.a BUILD/ggml/src/libggml{,-cpu,-base}.a) -ldl"
//   c++ -O2 -std=c++20 -fopenmp -I LLAMA/include -I LLAMA/ggml/include llama_depth.cpp $LIBRARIES -o llama_depth
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "llama.h"

namespace {

constexpr int kComputed = 256;  // positions

[[noreturn]] void fail(const std::string& why) {
  std::fprintf(stderr, "llama_depth: %s\n", why.c_str());
  std::exit(1);
}

std::vector<std::string> parts(const char* list) {
  std::vector<std::string> found;
  std::istringstream in(list);
  for (std::string part; std::getline(in, part, ',');) found.push_back(part);
  return found;
}

// A sequence's state in llama.cpp's own form (0c1e57098): magic, sequence, streams, cells; of each cell position, number of sequences and
// sequence; whether values are transposed, layers; then of all layers the keys, and of all the values: type, bytes of a row, rows.
class State {
 public:
  explicit State(llama_context* context) : bytes_(llama_state_seq_get_size(context, 0)) {
    bytes_.resize(llama_state_seq_get_data(context, bytes_.data(), bytes_.size(), 0));
  }

  std::vector<uint8_t> repeated(uint32_t n) {
    std::vector<uint8_t> out;
    at_ = 0;
    copy(out, 12);
    if (take<uint32_t>() != kComputed) fail("another number of cells than positions");
    put(out, n);
    at_ += kComputed * 12;
    for (uint32_t i = 0; i < n; i++) put(out, i), put(out, uint32_t(1)), put(out, uint32_t(0));
    if (take<uint32_t>() != 0) fail("values are transposed: flash attention is off");
    const uint32_t layers = take<uint32_t>();
    put(out, uint32_t(0)), put(out, layers);
    position_bytes_ = 0;
    for (uint32_t i = 0; i < 2 * layers; i++) {
      copy(out, 4);
      const uint64_t row = take<uint64_t>();
      put(out, row);
      if (row > (bytes_.size() - at_) / kComputed) fail("a state of another form");
      for (uint32_t p = 0; p < n; p++)
        out.insert(out.end(), bytes_.begin() + long(at_ + p % kComputed * row), bytes_.begin() + long(at_ + (p % kComputed + 1) * row));
      at_ += kComputed * row, position_bytes_ += row;
    }
    if (at_ != bytes_.size()) fail("a state of another form");
    return out;
  }

  uint64_t position_bytes() const { return position_bytes_; }

 private:
  template <class T>
  T take() {
    if (at_ + sizeof(T) > bytes_.size()) fail("a state of another form");
    T value;
    std::memcpy(&value, &bytes_[at_], sizeof(T));
    at_ += sizeof(T);
    return value;
  }
  template <class T>
  static void put(std::vector<uint8_t>& out, T value) {
    const auto* bytes = reinterpret_cast<const uint8_t*>(&value);
    out.insert(out.end(), bytes, bytes + sizeof(T));
  }
  void copy(std::vector<uint8_t>& out, size_t n) {
    for (size_t i = 0; i < n; i++) put(out, take<uint8_t>());
  }

  std::vector<uint8_t> bytes_;
  size_t at_ = 0;
  uint64_t position_bytes_ = 0;
};

void decode(llama_context* context, std::vector<llama_token> tokens) {
  if (llama_decode(context, llama_batch_get_one(tokens.data(), int32_t(tokens.size()))) != 0) fail("llama_decode failed");
  llama_synchronize(context);
}

void measure(llama_model* model, const std::string& name, ggml_type type, int depth, int threads, int tokens) {
  llama_context_params params = llama_context_default_params();
  params.n_ctx = uint32_t(std::max(depth, kComputed) + tokens + 8);
  params.n_batch = params.n_ubatch = 512;
  params.n_threads = params.n_threads_batch = threads;
  params.type_k = params.type_v = type;
  params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
  llama_context* context = llama_init_from_model(model, params);
  if (!context) fail("no context");
  std::vector<llama_token> text(kComputed);
  for (int i = 0; i < kComputed; i++) text[size_t(i)] = 100 + i * 37 % 900;
  decode(context, text);
  State state(context);
  llama_memory_clear(llama_get_memory(context), true);
  if (depth > 0) {
    const auto repeated = state.repeated(uint32_t(depth));
    if (llama_state_seq_set_data(context, repeated.data(), repeated.size(), 0) != repeated.size()) fail("the state was refused");
  } else {
    state.repeated(0);
  }
  std::vector<double> times;
  for (int i = 0; i <= tokens; i++) {  // the first one warms up
    const auto begun = std::chrono::steady_clock::now();
    decode(context, {100});
    const double ms = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begun).count();
    if (i > 0) times.push_back(ms);
  }
  std::sort(times.begin(), times.end());
  std::printf("| %d | %s | %.2f | %.2f | %llu |\n", depth, name.c_str(), times.front(), times[times.size() / 2],
              static_cast<unsigned long long>(state.position_bytes()));
  std::fflush(stdout);
  llama_free(context);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 6) fail("MODEL THREADS TOKENS DEPTH,... TYPE,...");
  const std::map<std::string, ggml_type> types = {{"f16", GGML_TYPE_F16}, {"q8_0", GGML_TYPE_Q8_0}, {"q4_0", GGML_TYPE_Q4_0}};
  llama_log_set([](ggml_log_level, const char*, void*) {}, nullptr);
  llama_backend_init();
  llama_model* model = llama_model_load_from_file(argv[1], llama_model_default_params());
  if (!model) fail("no model");
  std::printf("| depth | cache | ms a token, least | median | bytes a position |\n|---|---|---|---|---|\n");
  for (const auto& depth : parts(argv[4]))
    for (const auto& name : parts(argv[5])) {
      if (!types.contains(name)) fail("type " + name);
      measure(model, name, types.at(name), std::atoi(depth.c_str()), std::atoi(argv[2]), std::atoi(argv[3]));
    }
  llama_model_free(model);
}
