// Kernels that go over positions, attention and the gated delta net: every instruction set that this machine can run against plain
// arithmetic and the oracle.
#include <algorithm>
#include <random>
#include <vector>

#include "check.h"
#include "format/delta_net.h"
#include "kernels/kernels.h"

using namespace tq;
using kernels::Kernels;

namespace {

std::mt19937_64 rng(20240607);

float normal() { return std::normal_distribution<float>()(rng); }
std::vector<float> normals(int64_t n) {
  std::vector<float> x(n);
  for (float& v : x) v = normal();
  return x;
}

}  // namespace

TEST("attention over a float16 cache, in one range and in merged ranges") {
  for (const Kernels* isa : kernels::all_kernels())
    for (int head_dim : {8, 20, 64, 80, 128})
      for (int positions : {1, 2, 63, 64, 65, 200}) {
        kernels::AttentionShape shape;
        shape.n_heads = shape.n_kv_heads = 1, shape.head_dim = head_dim;
        shape.scale = 1 / std::sqrt(float(head_dim)), shape.soft_cap = positions % 2 ? 5.f : 0.f;
        const int64_t stride = head_dim + 8;
        const auto q = normals(head_dim);
        std::vector<uint16_t> k(positions * stride), v(positions * stride);
        for (auto& e : k) e = f32_to_f16(normal());
        for (auto& e : v) e = f32_to_f16(normal());
        std::vector<double> weight(positions), expected(head_dim);
        double total = 0;
        for (int p = 0; p < positions; p++) {
          double score = 0;
          for (int i = 0; i < head_dim; i++) score += double(q[i]) * f16_to_f32(k[p * stride + i]);
          score *= shape.scale;
          if (shape.soft_cap > 0) score = shape.soft_cap * std::tanh(score / shape.soft_cap);
          total += weight[p] = std::exp(score);
        }
        for (int p = 0; p < positions; p++)
          for (int i = 0; i < head_dim; i++) expected[i] += weight[p] / total * f16_to_f32(v[p * stride + i]);
        std::vector<float> out(head_dim);
        kernels::AttentionQuery query{.q = q.data(), .out = out.data()};
        const int cut = positions / 3;  // a second call goes on from the first one's state
        isa->attention(shape, &query, 1, k.data(), v.data(), stride, 0, cut);
        isa->attention(shape, &query, 1, k.data(), v.data(), stride, cut, positions);
        for (int i = 0; i < head_dim; i++) CHECK_NEAR(out[i] / query.sum, expected[i], 2e-5);
      }
}

namespace {

struct Attended {
  float max, sum;
  std::vector<float> out;
  bool operator==(const Attended&) const = default;
};

// n queries over [first, last), `together` of them in a call.
template <class Kernel, class Element>
std::vector<Attended> attend(Kernel kernel, const kernels::AttentionShape& shape, const std::vector<float>& q, int64_t together,
                             const Element* k, const Element* v, int64_t stride, int64_t first, int64_t last) {
  const int64_t dim = shape.head_dim, n = int64_t(q.size()) / dim;
  std::vector<float> out(q.size());
  std::vector<kernels::AttentionQuery> queries;
  for (int64_t i = 0; i < n; i++) queries.push_back({.q = q.data() + i * dim, .out = out.data() + i * dim});
  for (int64_t i = 0; i < n; i += together) kernel(shape, &queries[size_t(i)], std::min(together, n - i), k, v, stride, first, last);
  std::vector<Attended> found;
  for (const auto& query : queries) found.push_back({query.max, query.sum, {query.out, query.out + dim}});
  return found;
}

}  // namespace

TEST("queries that read a cache together get the bits that each gets alone, from float16 and float32") {
  for (const Kernels* isa : kernels::all_kernels())
    for (const int dim : {12, 16, 64, 80, 96})
      for (const int n : {1, 2, 3, 4, 7, 9})
        for (const auto& [first, last] : {std::pair<int64_t, int64_t>{0, 1}, {0, 64}, {5, 150}}) {
          const kernels::AttentionShape shape{.n_heads = n, .n_kv_heads = 1, .head_dim = dim, .scale = 0.2f, .soft_cap = n % 2 ? 4.f : 0.f};
          const int64_t stride = dim + 3;
          const auto q = normals(n * dim);
          std::vector<uint16_t> k(size_t(last * stride)), v(k.size());
          std::vector<float> exact_k(k.size()), exact_v(k.size());
          for (size_t i = 0; i < k.size(); i++) {
            k[i] = f32_to_f16(normal()), v[i] = f32_to_f16(normal());
            exact_k[i] = f16_to_f32(k[i]), exact_v[i] = f16_to_f32(v[i]);
          }
          const auto alone = attend(isa->attention, shape, q, 1, k.data(), v.data(), stride, first, last);
          CHECK(attend(isa->attention, shape, q, n, k.data(), v.data(), stride, first, last) == alone);
          const auto exact = attend(isa->attention_f32, shape, q, 1, exact_k.data(), exact_v.data(), stride, first, last);
          CHECK(attend(isa->attention_f32, shape, q, n, exact_k.data(), exact_v.data(), stride, first, last) == exact);
          for (size_t i = 0; i < alone.size(); i++) {
            CHECK_NEAR(alone[i].sum / exact[i].sum, 1, 1e-5);
            for (size_t c = 0; c < size_t(dim); c++) CHECK_NEAR(alone[i].out[c] / alone[i].sum, exact[i].out[c] / exact[i].sum, 1e-5);
          }
        }
}

TEST("the gated delta net: convolution and recurrence against the oracle, whatever is computed together") {
  for (const Kernels* isa : kernels::all_kernels())
    for (const auto& dims : {std::pair{12, 20}, {33, 7}, {64, 80}}) {
      const int key_dim = dims.first, value_dim = dims.second;
      const DeltaNetShape s{.n_key_heads = 2, .n_value_heads = 4, .key_dim = key_dim, .value_dim = value_dim, .taps = 4, .tiled = true};
      const int64_t n = 40, width = s.conv_width();
      const auto conv = normals(s.taps * width), qkv = normals(n * width), bias = normals(4);
      auto alpha = normals(n * 4), beta = normals(n * 4), rate = normals(4);
      for (float& r : rate) r = -std::fabs(r);
      std::vector<double> expected(size_t(n * s.value_width()));
      reference::delta_net(s, {conv.data(), rate.data(), bias.data()}, n, qkv.data(), alpha.data(), beta.data(), expected.data());
      std::vector<float> x(size_t(n * width), 0.f), zeros(size_t(width), 0.f);
      for (int64_t t = 0; t < n; t++) {
        const float* rows[4];
        for (int64_t tap = 0; tap < 4; tap++) rows[tap] = t + tap < 3 ? zeros.data() : &qkv[size_t((t + tap - 3) * width)];
        isa->convolve(rows, 4, conv.data(), width, width, &x[size_t(t * width)]);
        for (int64_t h = 0; h < 4; h++) {  // two heads of queries, two of keys
          float* head = &x[size_t(t * width + h * key_dim)];
          double sum = kDeltaNormEps;
          for (int i = 0; i < key_dim; i++) sum += double(head[i]) * head[i];
          for (int i = 0; i < key_dim; i++) head[i] = float(head[i] / std::sqrt(h < 2 ? sum * key_dim : sum));
        }
      }
      for (size_t i = 0; i < alpha.size(); i++) {
        alpha[i] = float(std::exp(rate[i % 4] * std::log1p(std::exp(double(alpha[i]) + bias[i % 4]))));
        beta[i] = float(1 / (1 + std::exp(-double(beta[i]))));
      }
      double largest = 0;
      for (const double e : expected) largest = std::max(largest, std::fabs(e));
      // Sums of key_dim rounded products, of which each token carries the errors of those before it on, decayed and no larger.
      const double bound = double(n) * key_dim * 0x1p-24 * std::max(largest, 1.);
      std::vector<float> whole(expected.size()), parts(expected.size());
      for (int h = 0; h < 4; h++) {
        const auto run = [&](std::vector<float>& out, int64_t cut, int64_t column) {
          std::vector<float> state(size_t(key_dim) * size_t(value_dim));
          for (const auto& [first, last] : {std::pair<int64_t, int64_t>{0, cut}, {cut, n}}) {
            const float* q = &x[size_t(first * width + s.key_head(h) * key_dim)];
            for (const auto& [from, to] : {std::pair<int64_t, int64_t>{0, column}, {column, value_dim}})
              isa->delta_rule(state.data(), value_dim, key_dim, from, to,
                              {.n = last - first,
                               .qkv_stride = width,
                               .gate_stride = 4,
                               .out_stride = s.value_width(),
                               .q = q,
                               .k = q + s.key_width(),
                               .v = &x[size_t(first * width + 2 * s.key_width() + h * value_dim)],
                               .decay = &alpha[size_t(first * 4 + h)],
                               .beta = &beta[size_t(first * 4 + h)],
                               .out = &out[size_t(first * s.value_width() + h * value_dim)]});
          }
        };
        run(whole, n - 1, value_dim), run(parts, 7, value_dim);
      }
      for (size_t i = 0; i < whole.size(); i++) {
        CHECK_NEAR(whole[i], expected[i], bound);
        CHECK(whole[i] == parts[i]);
      }
    }
}
