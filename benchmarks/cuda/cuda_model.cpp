// Whole models on the device.
//   cuda_model shapes [NAME ...] [BITS ...]   models of random weights (16: FP16), see shapes.h: prompt and decode rates, memory
//   cuda_model decode BITS                    a few decode passes of llama-3.1-8b alone, for a profiler
//   cuda_model depth NAME BITS [CACHE ...]    decoding at depth and a prompt of 512 there, by type of the cache
//   cuda_model compare FILE                   a real file on the CPU and the device: logits, and 128 greedy tokens on the float path
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>

#include "measure.h"
#include "model/graph.h"
#include "shapes.h"

using namespace bench;

namespace {

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// Random matrices of one width in bits; layers share host memory and not device memory.
class Maker {
 public:
  Maker(Backend& backend, int bits) : backend_(backend), bits_(bits) {}
  MatrixPtr operator()(int64_t n_out, int64_t n_in) {
    if (bits_ == 16) return dense(n_out, n_in);
    std::unique_ptr<RandomMatrix>& m = packed_[{n_out, n_in}];
    if (!m) {
      m = std::make_unique<RandomMatrix>(n_out, n_in, bits_);
      m->host.tqn.rotation = Rotation::hartley_hadamard, m->host.tqn.seed = uint64_t(n_in);
    }
    return backend_.matrix(m->host);
  }
  MatrixPtr dense(int64_t n_out, int64_t n_in) {
    constexpr uint64_t kRandomBits = 0x87FF87FF87FF87FF, kExponents = 0x2000200020002000;  // magnitudes in [1/128, 1/64)
    std::mt19937_64 random{9};
    while (halves_.size() < size_t(n_out * n_in) / 4 + 1) halves_.push_back((random() & kRandomBits) | kExponents);
    HostMatrix host;
    host.name = "random", host.dense = {kernels::DType::f16, n_out, n_in, halves_.data()};
    return backend_.matrix(host);
  }

 private:
  Backend& backend_;
  int bits_;
  std::map<std::pair<int64_t, int64_t>, std::unique_ptr<RandomMatrix>> packed_;
  std::vector<uint64_t> halves_;  // four a word
};

class Synthetic {
 public:
  static constexpr int kSlots = 32, kCapacity = 4096 + 160;
  struct Memory {
    int64_t slots = kSlots, capacity = kCapacity, rows = 4096;
    CacheType cache = CacheType::f16;
  };
  Synthetic(const Shape& shape, int bits) : Synthetic(shape, bits, Memory{}) {}
  Synthetic(const Shape& shape, int bits, const Memory& memory) : shape_(shape), c_(shape.config()), backend_(make_cuda_backend({})) {
    make_weights(bits);
    weight_bytes_ = backend_->memory_bytes();
    p_ = allocate_planes(*backend_, c_, {.first_layer = 0, .last_layer = c_.n_layers(), .rows = memory.rows, .logit_rows = memory.slots});
    const CacheElements cache = elements_of(memory.cache);
    for (const LayerConfig& layer : c_.layers) states_.emplace_back(*backend_, state_shape(layer, cache), memory.slots, memory.capacity);
    const Graph graph{c_, w_, p_, memory.capacity};
    std::vector<Op> ops;
    add_embedding(ops, graph);
    for (int64_t i = 0; i < c_.n_layers(); i++) add_layer(ops, graph, i, states_[size_t(i)]);
    add_output(ops, graph);
    program_ = backend_->prepare(ops, memory.rows);
    add_best(ops, graph);
    choosing_ = backend_->prepare(ops, memory.slots);
  }
  // Random bytes in all caches: numbers or codes, whose sums mean nothing.
  void fill_caches() {
    std::mt19937_64 random{4};
    std::vector<uint64_t> words(size_t(1) << 20);
    for (uint64_t& w : words) w = random();
    const int64_t bytes = int64_t(words.size() * sizeof words[0]);
    for (const LayerState& state : states_)
      for (const BufferPtr& buffer : {state.k_cache(), state.v_cache()})
        for (int64_t at = 0; at < buffer->bytes; at += bytes)
          backend_->upload(*buffer, at, words.data(), std::min(bytes, buffer->bytes - at));
  }
  int64_t cache_bytes() const {
    int64_t total = 0;
    for (const LayerState& state : states_) total += state.bytes();
    return total;
  }
  int64_t memory() const { return backend_->memory_bytes(); }
  int64_t weight_bytes() const { return weight_bytes_; }
  enum Answer { nothing, logits, best };  // what comes back to the host
  // Seconds of one pass over `rows` rows in each of `slots` slots, from `position` on.
  double pass(int rows, int slots, int position, Answer answer = nothing) {
    std::vector<int32_t> tokens, positions, slot, outputs;
    for (int s = 0; s < slots; s++) {
      for (int r = 0; r < rows; r++)
        tokens.push_back((r * 131 + s) % int(c_.n_vocab)), positions.push_back(position + r), slot.push_back(s);
      outputs.push_back((s + 1) * rows - 1);
    }
    const double start = now();
    backend_->run(answer == best ? *choosing_ : *program_, {tokens, positions, slot, outputs});
    if (answer == logits) read(*p_.logits, logits_, slots * c_.n_vocab);
    if (answer == best) read(*p_.best, best_, slots * kMaxCandidates);
    return now() - start;
  }

 private:
  template <class T>
  void read(const Buffer& from, std::vector<T>& to, int64_t n) {
    to.resize(size_t(n));
    backend_->download(from, 0, to.data(), n * int64_t(sizeof(T)));
  }
  void make_weights(int bits) {
    Maker make(*backend_, bits);
    const std::vector<float> ones(size_t(c_.n_embd), 1.f);
    const BufferPtr norm = backend_->allocate(c_.n_embd * 4);
    backend_->upload(*norm, 0, ones.data(), c_.n_embd * 4);
    std::vector<float> inv_freq;
    for (int i = 0; i < shape_.head_dim / 2; i++) inv_freq.push_back(std::pow(Shape::kRopeBase, -2.f * float(i) / float(shape_.head_dim)));
    const BufferPtr rope = backend_->allocate(int64_t(inv_freq.size()) * 4);
    backend_->upload(*rope, 0, inv_freq.data(), int64_t(inv_freq.size()) * 4);
    for (int64_t i = 0; i < shape_.n_layers; i++) {
      AttentionWeights attention;
      attention.q = make(shape_.q_width(), c_.n_embd), attention.o = make(c_.n_embd, shape_.q_width());
      attention.k = make(shape_.kv_width(), c_.n_embd), attention.v = make(shape_.kv_width(), c_.n_embd);
      attention.rope.common = rope;
      Layer l;
      l.mixer_norm = l.ffn_norm = norm, l.mixer = attention;
      if (shape_.n_experts > 0)
        l.feed_forward = make_experts(make);
      else
        l.feed_forward = make_gated(make);
      w_.layers.push_back(std::move(l));
    }
    w_.embed = make(c_.n_vocab, c_.n_embd), w_.output = shape_.tied ? w_.embed : make(c_.n_vocab, c_.n_embd), w_.output_norm = norm;
  }
  GatedWeights make_gated(Maker& make) {
    return {make(shape_.n_ff, c_.n_embd), make(shape_.n_ff, c_.n_embd), make(c_.n_embd, shape_.n_ff)};
  }
  ExpertsWeights make_experts(Maker& make) {
    ExpertsWeights w;
    w.router = make.dense(shape_.n_experts, c_.n_embd);
    for (int e = 0; e < shape_.n_experts; e++) w.experts.push_back(make_gated(make));
    return w;
  }

  const Shape shape_;
  Config c_;
  std::unique_ptr<Backend> backend_;
  Weights w_;
  Planes p_;
  std::vector<LayerState> states_;
  std::unique_ptr<Program> program_, choosing_;
  std::vector<float> logits_;
  std::vector<Candidate> best_;
  int64_t weight_bytes_ = 0;
};

double decode_rate(Synthetic& model, int slots, Synthetic::Answer answer) {
  model.pass(1, slots, 0, answer);
  double total = 0;
  for (int i = 0; i < 128; i++) total += model.pass(1, slots, 1 + i, answer);
  return 128.0 * slots / total;
}

double prompt_rate(Synthetic& model, int rows) {
  model.pass(rows, 1, 0);
  std::vector<double> times;
  for (int i = 0; i < 3; i++) times.push_back(model.pass(rows, 1, 0));
  std::sort(times.begin(), times.end());
  return rows / times[1];
}

void print_rates(const Shape& shape, int bits) {
  Synthetic m(shape, bits);
  std::printf("%-14s %4d %9.0f %9.0f", shape.name.c_str(), bits, prompt_rate(m, 512), prompt_rate(m, 4096));
  for (const auto answer : {Synthetic::best, Synthetic::logits})
    for (const int slots : {1, 8, 32}) std::printf(" %9.1f", decode_rate(m, slots, answer));
  const double gib = double(1 << 30);
  std::printf(" %9.2f %9.2f\n", double(m.weight_bytes()) / gib, double(m.memory()) / gib);
  std::fflush(stdout);
}

// Decoding: 128 tokens of 1, 8 and 32 sequences, whose best tokens, or all logits, come back to the host. Memory: weights; and with the
// cache of 32 sequences of 4256 positions.
void shapes(std::vector<Shape> wanted, std::vector<int> bits) {
  const bool all_bits = bits.empty();
  if (wanted.empty()) wanted = known_shapes();
  if (all_bits) bits = {2, 3, 4, 16};
  std::printf("%-14s %4s %9s %9s %9s %9s %9s %9s %9s %9s %9s %9s\n", "model", "bits", "pp512", "pp4096", "tg128 b1", "b8", "b32",
              "copied b1", "b8", "b32", "weights", "GiB all");
  for (const Shape& s : wanted)
    for (const int b : bits)
      if (!all_bits || b < 16 || s.n_experts == 0) print_rates(s, b);  // 30 G weights in FP16 fit few devices
}

// Medians: a token in one sequence, and a prompt of 512, that stand behind `depth` positions.
void depths(const Shape& shape, int bits, const std::vector<std::string>& wanted) {
  const std::pair<const char*, CacheType> types[] = {
      {"f16", CacheType::f16}, {"k8v8", CacheType::k8v8}, {"k8v4", CacheType::k8v4}, {"k4v4", CacheType::k4v4}};
  constexpr int kPrompt = 512, kPasses = 15, kDepths[] = {0, 2048, 8192, 32768, 131072};
  std::printf("%-14s %5s %12s %8s %12s %12s\n", "model", "cache", "bytes/token", "depth", "ms a token", "pp512 tok/s");
  for (const auto& [name, type] : types) {
    if (!wanted.empty() && std::find(wanted.begin(), wanted.end(), name) == wanted.end()) continue;
    const Synthetic::Memory memory{1, kDepths[4] + kPrompt, kPrompt, type};
    Synthetic m(shape, bits, memory);
    m.fill_caches();
    for (const int depth : kDepths) {
      std::vector<double> token, prompt;
      m.pass(1, 1, depth, Synthetic::best), m.pass(kPrompt, 1, depth);
      for (int i = 0; i < kPasses; i++) token.push_back(m.pass(1, 1, depth + i, Synthetic::best));
      for (int i = 0; i < 3; i++) prompt.push_back(m.pass(kPrompt, 1, depth));
      std::sort(token.begin(), token.end()), std::sort(prompt.begin(), prompt.end());
      std::printf("%-14s %5s %12.0f %8d %12.3f %12.0f\n", shape.name.c_str(), name, double(m.cache_bytes()) / double(memory.capacity),
                  depth, 1e3 * token[kPasses / 2], kPrompt / prompt[1]);
      std::fflush(stdout);
    }
  }
}

struct Answer {
  std::vector<float> prompt_logits;
  std::vector<int32_t> tokens;
};

Answer greedy(const std::string& path, const std::string& device, Precision precision, CacheType cache, const std::vector<int32_t>& prompt,
              int n) {
  ModelOptions options;
  options.device = device, options.backend.precision = precision;
  Context context(Model::open(path, options), {.n_ctx = 512, .cache = cache});
  const int64_t n_vocab = context.model().config().n_vocab;
  std::vector<int32_t> all = prompt, positions, slots(prompt.size(), 0), outputs{int32_t(prompt.size()) - 1};
  for (size_t i = 0; i < prompt.size(); i++) positions.push_back(int32_t(i));
  std::vector<float> logits(static_cast<size_t>(n_vocab));
  context.forward({prompt, positions, slots, outputs}, logits);
  Answer answer{logits, {}};
  const double start = now();
  for (int i = 0; i < n; i++) {
    const int32_t token = int32_t(std::max_element(logits.begin(), logits.end()) - logits.begin()), position = int32_t(prompt.size()) + i,
                  zero = 0;
    answer.tokens.push_back(token);
    context.forward({{&token, 1}, {&position, 1}, {&zero, 1}, {&zero, 1}}, logits);
  }
  if (n)
    std::printf("%s, %s: %.1f tokens/s\n", context.model().backend_names().c_str(), precision == Precision::f32 ? "float path" : "int8",
                n / (now() - start));
  return answer;
}

void compare(const std::string& path) {
  std::vector<int32_t> prompt;
  for (int i = 0; i < 60; i++) prompt.push_back(1 + i * 389 % 40000);
  const std::pair<Precision, CacheType> cases[] = {{Precision::f32, CacheType::automatic}, {Precision::int8, CacheType::automatic},
                                                   {Precision::f32, CacheType::k8v8},      {Precision::int8, CacheType::k8v8},
                                                   {Precision::f32, CacheType::k8v4},      {Precision::int8, CacheType::k8v4}};
  for (const auto& [precision, cache] : cases) {
    const Answer a = greedy(path, "cpu", precision, cache, prompt, 128), b = greedy(path, "cuda", precision, cache, prompt, 128);
    double worst = 0, largest = 0;
    for (size_t i = 0; i < a.prompt_logits.size(); i++) {
      worst = std::max(worst, double(std::fabs(a.prompt_logits[i] - b.prompt_logits[i])));
      largest = std::max(largest, double(std::fabs(a.prompt_logits[i])));
    }
    const auto same = std::mismatch(a.tokens.begin(), a.tokens.end(), b.tokens.begin()).first - a.tokens.begin();
    std::printf("%s, cache type %d: largest logit %.2f, largest difference %.2e; %d of 128 greedy tokens equal\n",
                precision == Precision::f32 ? "float path" : "int8", int(cache), largest, worst, int(same));
  }
}

}  // namespace

int main(int argc, char** argv) {
  try {
    if (argc > 2 && !std::strcmp(argv[1], "compare")) {
      compare(argv[2]);
    } else if (argc > 3 && !std::strcmp(argv[1], "depth")) {
      depths(find_shape(argv[2]), std::atoi(argv[3]), {argv + 4, argv + argc});
    } else if (argc > 2 && !std::strcmp(argv[1], "decode")) {
      Synthetic m(find_shape("llama-3.1-8b"), std::atoi(argv[2]));
      for (int i = 0; i < 4; i++) std::printf("pass %d: %.3f ms\n", i, 1e3 * m.pass(1, 1, i));
    } else {
      std::vector<Shape> wanted;
      std::vector<int> bits;
      for (int i = 2; i < argc; i++) {
        if (const int b = std::atoi(argv[i]))
          bits.push_back(b);
        else
          wanted.push_back(find_shape(argv[i]));
      }
      shapes(wanted, bits);
    }
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
  }
}
