// What the Metal backend's linear layers and attention cost, beside a copy of the same memory: through the backend's own choice of kernels.
//   metal_kernels [small]      small: sizes for a test of this program
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <random>

#include "common/error.h"
#include "random_matrix.h"

using namespace tq;

namespace {

struct Sizes {
  int64_t cold_bytes;  // that inputs rotate through: several times the caches
  int64_t copy_bytes, n_out, n_in, tokens, positions;
  int repeats;
};
constexpr Sizes kFull{int64_t(512) << 20, int64_t(1) << 30, 4096, 4096, 512, 4096, 7};
constexpr Sizes kSmall{1, 1 << 16, 70, 260, 18, 40, 1};

double median_seconds(int repeats, const auto& call) {
  call();
  std::vector<double> times;
  for (int i = 0; i < repeats; i++) {
    const auto start = std::chrono::steady_clock::now();
    call();
    times.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  std::nth_element(times.begin(), times.begin() + repeats / 2, times.end());
  return times[size_t(repeats / 2)];
}

// Rows of a batch at positions `first` on, in slot 0.
struct Rows {
  std::vector<int32_t> tokens, positions, slots;
  Rows(int64_t n, int64_t first) : tokens(size_t(n), 0), slots(size_t(n), 0) {
    for (int64_t i = 0; i < n; i++) positions.push_back(int32_t(first + i));
  }
  Batch batch() const { return {tokens, positions, slots, {}}; }
};

// Seconds of one pass over no operations but a norm of one row: what a pass costs by itself.
double empty_pass(Backend& b, const Sizes& s) {
  const BufferPtr x = b.allocate(256);
  Op op{.kind = Op::norm};
  op.norm_op = {{x.get(), 64}, 1, nullptr, 1e-5f, {x.get(), 64}};
  const auto program = b.prepare({op}, 1);
  return median_seconds(s.repeats, [&] { b.run(*program, Rows(1, 0).batch()); });
}

void print_linear(Backend& b, const Sizes& s, int k, int64_t rows) {
  const int64_t weight_bytes = s.n_out * s.n_in * k / 8, copies = std::max<int64_t>(1, s.cold_bytes / weight_bytes);
  std::vector<std::unique_ptr<bench::RandomMatrix>> hosts;
  std::vector<MatrixPtr> matrices;
  const BufferPtr x = b.allocate(rows * s.n_in * 4), y = b.allocate(rows * s.n_out * 4);
  std::mt19937 random{3};
  std::normal_distribution<float> normal;
  std::vector<float> values(size_t(rows * s.n_in));
  for (float& v : values) v = normal(random);
  b.upload(*x, 0, values.data(), x->bytes);
  std::vector<Op> ops;
  for (int64_t i = 0; i < copies; i++) {
    hosts.push_back(std::make_unique<bench::RandomMatrix>(s.n_out, s.n_in, k, uint64_t(i)));
    hosts.back()->host.tqn.rotation = Rotation::hartley_hadamard, hosts.back()->host.tqn.seed = 5;
    matrices.push_back(b.matrix(hosts.back()->host));
    Op op{.kind = Op::linear};
    op.linear_op.in.x = {x.get(), s.n_in};
    op.linear_op.out = {{matrices.back().get(), {y.get(), s.n_out}}};
    ops.push_back(op);
  }
  const auto program = b.prepare(ops, rows);
  const Rows batch(rows, 0);
  const double each = median_seconds(s.repeats, [&] { b.run(*program, batch.batch()); }) / double(copies);
  std::printf("| linear, %d bits | %lld x %lld | %lld | %.1f | %.1f | %.2f |\n", k, (long long)s.n_out, (long long)s.n_in, (long long)rows,
              each * 1e6, double(weight_bytes) / each / 1e9, double(2 * s.n_out * s.n_in * rows) / each / 1e12);
}

// 32 query heads, 8 of keys and values, of 128.
void print_attention(Backend& b, const Sizes& s, int64_t rows) {
  constexpr int kHeads = 32, kKvHeads = 8, kDim = 128;
  const int64_t capacity = s.positions + rows, cache_bytes = capacity * kKvHeads * kDim * 2;
  const BufferPtr q = b.allocate(rows * kHeads * kDim * 4), kv = b.allocate(rows * kKvHeads * kDim * 4),
                  out = b.allocate(rows * kHeads * kDim * 4), k_cache = b.allocate(cache_bytes), v_cache = b.allocate(cache_bytes);
  Op op{.kind = Op::attention};
  op.attention_op.q = {q.get(), kHeads * kDim}, op.attention_op.k = {kv.get(), kKvHeads * kDim};
  op.attention_op.v = op.attention_op.k, op.attention_op.out = {out.get(), kHeads * kDim};
  op.attention_op.shape = {kHeads, kKvHeads, kDim, 1 / std::sqrt(float(kDim)), 0};
  op.attention_op.k_cache = k_cache.get(), op.attention_op.v_cache = v_cache.get(), op.attention_op.capacity = capacity;
  const auto program = b.prepare({op}, rows);
  const Rows batch(rows, s.positions);
  const double time = median_seconds(s.repeats, [&] { b.run(*program, batch.batch()); });
  std::printf("| attention, 32 heads of 128 on 8 | %lld positions | %lld | %.1f | %.1f | %.2f |\n", (long long)s.positions, (long long)rows,
              time * 1e6, double(2 * cache_bytes) / time / 1e9, 4.0 * kHeads * kDim * double(rows * s.positions) / time / 1e12);
}

void print_copy(Backend& b, const Sizes& s) {
  const BufferPtr from = b.allocate(s.copy_bytes), to = b.allocate(s.copy_bytes);
  char last = 0;
  const double time = median_seconds(s.repeats, [&] {
    b.copy(*from, 0, *to, 0, s.copy_bytes);
    b.download(*to, 0, &last, 1);
  });
  std::printf("| copy, read and written | %lld MiB | | %.1f | %.1f | |\n", (long long)(s.copy_bytes >> 20), time * 1e6,
              2 * double(s.copy_bytes) / time / 1e9);
}

}  // namespace

int main(int argc, char** argv) {
  const Sizes& s = argc > 1 && !std::strcmp(argv[1], "small") ? kSmall : kFull;
  try {
    const auto b = make_metal_backend({});
    std::printf("%s: %s\n\n| | size | rows | us | GB/s | Tops/s |\n|---|---|---|---|---|---|\n", b->name().c_str(), metal_status().c_str());
    print_copy(*b, s);
    std::printf("| a pass with one norm | | 1 | %.1f | | |\n", empty_pass(*b, s) * 1e6);
    for (const int k : tqn::Formats::bits)
      for (const int64_t rows : {int64_t(1), int64_t(4), s.tokens}) print_linear(*b, s, k, rows);
    for (const int64_t rows : {int64_t(1), s.tokens}) print_attention(*b, s, rows);
  } catch (const Error& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
  }
}
