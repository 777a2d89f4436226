// A model of random weights with its layers divided between devices in several ways: speed, and logits beside those of the first way.
//   cuda_split NAME BITS DEVICE [DEVICE ...]      cuda_split llama-3.2-1b 4 cuda "cpu*4,cuda" "cuda:0*8,cuda:1"
// NAME: see shapes.h. The same device in one piece or in two gives the same logits bit for bit; on the CPU, sums are taken in another
// order.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <map>

#include "gguf_builder.h"
#include "measure.h"
#include "shapes.h"

using namespace bench;

namespace {

constexpr int kPrompt = 512, kDecoded = 64, kCompared = 8;  // tokens; prompt rows whose logits are compared

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// A GGUF file of random codes, the same ones in every layer.
class RandomFile {
 public:
  RandomFile(const Shape& shape, int bits) : c_(shape), bits_(bits) {
    if (c_.n_experts > 0) throw Error(Cause::invalid_argument, c_.name + ": only dense models are written");
    add_metadata();
    matrix("token_embd.weight", c_.n_vocab, c_.n_embd);
    if (!shape.tied) matrix("output.weight", c_.n_vocab, c_.n_embd);
    norm("output_norm.weight");
    for (int64_t i = 0; i < c_.n_layers; i++) add_layer("blk." + std::to_string(i) + ".");
    file_.text("turboquant.tensors", "{" + list_ + "}");
  }
  std::string bytes() { return file_.bytes(); }

 private:
  template <class T>
  void key(const std::string& name, uint32_t type, T value) {
    file_.key("llama." + name, type, build::raw(value));
  }
  void add_metadata() {
    file_.text("general.architecture", "llama");
    file_.key("turboquant.version", build::u32, build::raw(uint32_t(tqn::kVersion)));
    key("block_count", build::u32, uint32_t(c_.n_layers)), key("embedding_length", build::u32, uint32_t(c_.n_embd));
    key("context_length", build::u32, uint32_t(kPrompt + kDecoded)), key("feed_forward_length", build::u32, uint32_t(c_.n_ff));
    key("attention.head_count", build::u32, uint32_t(c_.n_heads)), key("attention.head_count_kv", build::u32, uint32_t(c_.n_kv_heads));
    key("attention.key_length", build::u32, uint32_t(c_.head_dim)), key("attention.value_length", build::u32, uint32_t(c_.head_dim));
    key("attention.layer_norm_rms_epsilon", build::f32, Shape::kNormEps), key("rope.freq_base", build::f32, Shape::kRopeBase);
  }
  void add_layer(const std::string& blk) {
    const int64_t q = c_.q_width(), kv = c_.kv_width();
    norm(blk + "attn_norm.weight"), norm(blk + "ffn_norm.weight");
    matrix(blk + "attn_q.weight", q, c_.n_embd), matrix(blk + "attn_k.weight", kv, c_.n_embd), matrix(blk + "attn_v.weight", kv, c_.n_embd);
    matrix(blk + "attn_output.weight", c_.n_embd, q);
    matrix(blk + "ffn_gate.weight", c_.n_ff, c_.n_embd), matrix(blk + "ffn_up.weight", c_.n_ff, c_.n_embd);
    matrix(blk + "ffn_down.weight", c_.n_embd, c_.n_ff);
  }
  void norm(const std::string& name) {
    const std::vector<float> ones(size_t(c_.n_embd), 1.f);
    file_.tensors.push_back({name, build::F32, {uint64_t(c_.n_embd)}, build::raw(ones)});
  }
  // Outputs about as large as inputs: codebook entries are evenly spread over +-126, so their root mean square is 73.
  void matrix(const std::string& name, int64_t n_out, int64_t n_in) {
    if (bits_ == 16) return dense(name, n_out, n_in);
    std::unique_ptr<RandomMatrix>& m = packed_[{n_out, n_in}];
    if (!m) m = std::make_unique<RandomMatrix>(n_out, n_in, bits_);
    plane(name + ".tqn", build::I8, 1, build::raw(m->codes)), plane(name + ".tqn_scale", build::F16, 2, build::raw(m->row_scale));
    if (tqn::has_codebook(bits_)) plane(name + ".tqn_cb", build::I8, 1, build::raw(m->codebook));
    char entry[256];
    std::snprintf(entry, sizeof entry,
                  R"(%s"%s":{"bits":%d,"n_out":%lld,"n_in":%lld,"scale":%.9g,"rotation":"hartley-hadamard","seed":"%lld","outliers":0})",
                  list_.empty() ? "" : ",", name.c_str(), bits_, (long long)n_out, (long long)n_in, 1 / (73 * std::sqrt(double(n_in))),
                  (long long)n_in);
    list_ += entry;
  }
  void dense(const std::string& name, int64_t n_out, int64_t n_in) {
    std::vector<uint16_t> halves(size_t(n_out * n_in));
    std::mt19937 random{13};
    std::normal_distribution<float> normal(0, 1 / std::sqrt(float(n_in)));
    for (size_t i = 0; i < halves.size(); i++) halves[i] = i < kDrawn ? f32_to_f16(normal(random)) : halves[i - kDrawn];
    file_.tensors.push_back({name, build::F16, {uint64_t(n_in), uint64_t(n_out)}, build::raw(halves)});
  }
  void plane(const std::string& name, uint32_t type, uint64_t element_bytes, std::string data) {
    const uint64_t count = data.size() / element_bytes;
    file_.tensors.push_back({name, type, {count}, std::move(data)});
  }

  static constexpr size_t kDrawn = 1 << 22;  // random elements of a dense matrix, then repeated

  const Shape c_;
  const int bits_;
  build::File file_;
  std::string list_;
  std::map<std::pair<int64_t, int64_t>, std::unique_ptr<RandomMatrix>> packed_;
};

struct Run {
  double open = 0, prompt = 0, decode = 0;  // seconds
  std::vector<float> logits;                // of the prompt's last rows and of the last decoded token
};

Run run(const std::string& path, const std::string& device, Precision precision) {
  Run result;
  const double start = now();
  ModelOptions options;
  options.device = device, options.backend.precision = precision;
  Context context(Model::open(path, options), {.n_ctx = kPrompt + kDecoded});
  const int64_t n_vocab = context.model().config().n_vocab;
  result.open = now() - start, result.logits.resize(size_t(n_vocab * (kCompared + 1)));
  std::vector<int32_t> tokens, positions, slots(kPrompt, 0), outputs;
  for (int i = 0; i < kPrompt; i++) tokens.push_back(int32_t(i * 389 % n_vocab)), positions.push_back(i);
  for (int i = kPrompt - kCompared; i < kPrompt; i++) outputs.push_back(i);
  const std::span<float> all = result.logits, last = all.subspan(size_t(n_vocab * kCompared));
  for (int repeat = 0; repeat < 2; repeat++) {  // the first pass warms up
    const double begin = now();
    context.forward({tokens, positions, slots, outputs}, all.first(last.data() - all.data()));
    result.prompt = now() - begin;
  }
  const double begin = now();
  for (int32_t i = 0, zero = 0; i < kDecoded; i++) {
    const int32_t token = int32_t(i * 97 % n_vocab), position = kPrompt + i;
    context.forward({{&token, 1}, {&position, 1}, {&zero, 1}, {&zero, 1}}, last);
  }
  result.decode = now() - begin;
  return result;
}

void compare(const std::string& path, const std::vector<std::string>& devices, Precision precision) {
  std::printf("\n%s\n%-28s %8s %9s %9s %14s %20s\n", precision == Precision::f32 ? "float path" : "int8", "device", "open s", "pp512",
              "tg64", "largest logit", "largest difference");
  std::vector<float> expected;
  for (const std::string& device : devices) {
    const Run r = run(path, device, precision);
    if (expected.empty()) expected = r.logits;
    float largest = 0, difference = 0;
    for (size_t i = 0; i < expected.size(); i++)
      largest = std::max(largest, std::fabs(r.logits[i])), difference = std::max(difference, std::fabs(r.logits[i] - expected[i]));
    std::printf("%-28s %8.1f %9.0f %9.1f %14.3f %20.2e\n", device.c_str(), r.open, kPrompt / r.prompt, kDecoded / r.decode, largest,
                difference);
    std::fflush(stdout);
  }
}

}  // namespace

int main(int argc, char** argv) {
  try {
    if (argc < 4) throw Error(Cause::invalid_argument, "usage: cuda_split NAME BITS DEVICE [DEVICE ...]");
    const build::OnDisk disk(RandomFile(find_shape(argv[1]), std::atoi(argv[2])).bytes());
    for (const Precision precision : {Precision::int8, Precision::f32}) compare(disk.path(), {argv + 3, argv + argc}, precision);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
  }
}
