// Speed of the CPU kernels beside what this machine can do at best, measured in the same run. Prints Markdown tables.
//   kernels [isa ...] [--quick]     all instruction sets that this machine runs, unless some are named
#include "kernels/kernels.h"

#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <thread>

#include "format/reference.h"

#if TQ_X86
#include <immintrin.h>
#endif

using namespace tq;
using kernels::Kernels;

namespace {

constexpr int kMaxThreads = 2;
constexpr int64_t kColdBytes = int64_t(384) << 20;  // much larger than a last-level cache
int repetitions = 7;

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// Median seconds of work(thread) run by all threads together.
double time_threads(int n_threads, const std::function<void(int)>& work) {
  std::vector<double> seconds;
  for (int i = 0; i < repetitions; i++) {
    const double start = now();
    std::vector<std::thread> threads;
    for (int t = 1; t < n_threads; t++) threads.emplace_back(work, t);
    work(0);
    for (auto& thread : threads) thread.join();
    seconds.push_back(now() - start);
  }
  std::sort(seconds.begin(), seconds.end());
  return seconds[seconds.size() / 2];
}

struct Memory {  // zeroed or random bytes on huge pages where the system grants them
  int64_t bytes;
  uint8_t* data;
  explicit Memory(int64_t n) : bytes((n + (2 << 20) - 1) >> 21 << 21) {
    void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) std::abort();
    madvise(p, bytes, MADV_HUGEPAGE);
    data = static_cast<uint8_t*>(p);
  }
  ~Memory() { munmap(data, bytes); }
  Memory(const Memory&) = delete;
  void fill_random() {
    tqn::SplitMix64 stream{1};
    for (int64_t i = 0; i + 8 <= bytes; i += 8) {
      const uint64_t v = stream.next();
      std::memcpy(data + i, &v, 8);
    }
  }
};

volatile uint64_t sink;

void read_range(const uint8_t* p, int64_t bytes) {
  uint64_t s[8] = {};
  for (int64_t i = 0; i + 64 <= bytes; i += 64)
    for (int j = 0; j < 8; j++) {
      uint64_t v;
      std::memcpy(&v, p + i + 8 * j, 8);
      s[j] ^= v;
    }
  sink = s[0] ^ s[1] ^ s[2] ^ s[3] ^ s[4] ^ s[5] ^ s[6] ^ s[7];
}

double read_bandwidth(const Memory& memory, int n_threads) {
  const int64_t share = memory.bytes / n_threads;
  return double(memory.bytes) / time_threads(n_threads, [&](int t) { read_range(memory.data + t * share, share); });
}

#if TQ_X86
// Dot products from registers to registers: what the pipes allow. Each line has accumulators enough to hide the latency; assembly, because
// a compiler would fold or spill them.
#define TQ_TIMES_12(one) one(0) one(1) one(2) one(3) one(4) one(5) one(6) one(7) one(8) one(9) one(10) one(11)
#define TQ_VNNI(n) "vpdpbusd %%zmm30, %%zmm31, %%zmm" #n "\n"
#define TQ_MADD_512(n) "vpmaddwd %%zmm30, %%zmm31, %%zmm28\n vpaddd %%zmm28, %%zmm" #n ", %%zmm" #n "\n"
#define TQ_MADD_256(n) \
  "vpmaddubsw %%ymm15, %%ymm14, %%ymm13\n vpmaddwd %%ymm15, %%ymm13, %%ymm13\n vpaddd %%ymm13, %%ymm" #n ", %%ymm" #n "\n"
#define TQ_CLOBBERS "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm13"

struct PeakLoop {
  int64_t operations;  // of one repetition
  void (*run)(int64_t n);
};
constexpr PeakLoop kVnni = {12 * 64 * 2, [](int64_t n) __attribute__((target("avx512f,avx512vnni"))) {
                              for (; n; n--) __asm__ volatile(TQ_TIMES_12(TQ_VNNI)::: TQ_CLOBBERS);
                            }};
constexpr PeakLoop kMadd512 = {12 * 32 * 2, [](int64_t n) __attribute__((target("avx512bw"))) {
                                 for (; n; n--) __asm__ volatile(TQ_TIMES_12(TQ_MADD_512)::: TQ_CLOBBERS, "xmm28");
                               }};
constexpr PeakLoop kMadd256 = {12 * 32 * 2, [](int64_t n) __attribute__((target("avx2"))) {
                                 for (; n; n--) __asm__ volatile(TQ_TIMES_12(TQ_MADD_256)::: TQ_CLOBBERS);
                               }};
#endif

// Operations a second of one core's int8 dot products (2 a product), 0 where this file has no loop for the instruction set.
double dot_peak(std::string_view isa) {
#if TQ_X86
  const auto measure = [](const PeakLoop& loop) {
    constexpr int64_t n = 2000000;
    return double(n * loop.operations) / time_threads(1, [&](int) { loop.run(n); });
  };
  if (isa == "avx512vbmi") return measure(kVnni);
  if (isa == "avx512") return measure(kMadd512);
  if (isa == "avx2") return measure(kMadd256);
#endif
  (void)isa;
  return 0;
}

// A matrix of random codes, as cold as asked for, and random activations.
struct Problem {
  Memory codes;
  std::vector<uint16_t> row_scale;
  std::vector<int8_t> codebook, a;
  std::vector<float> x, act_scale, y;
  TqnMatrix w;
  int64_t n_tokens;

  Problem(int k, int64_t n_in, int64_t bytes, int64_t n_tokens)
      : codes(bytes),
        codebook(tqn::kCodebookSize),
        a(n_tokens * n_in),
        x(n_tokens * n_in, 0.5f),
        act_scale(n_tokens, 0.01f),
        n_tokens(n_tokens) {
    codes.fill_random();
    std::mt19937 rng(1);
    for (auto& v : a) v = int8_t(int(rng() % 255) - 127);
    const auto book = tq::reference::default_codebook(k);
    std::copy(book.begin(), book.end(), codebook.begin());
    w.n_in = n_in, w.k = k, w.codes = codes.data, w.codebook = codebook.data(), w.scale = 0.01f;
    w.n_out = bytes / int64_t(tqn::strip_bytes(n_in, k)) * tqn::kTileRows;
    row_scale.assign(w.n_out, f32_to_f16(0.5f));
    w.row_scale = row_scale.data();
    y.resize(n_tokens * w.n_out);
  }
  double weights() const { return double(w.n_out) * double(w.n_in); }
  double bytes() const { return weights() * w.k / 8; }

  double seconds(const Kernels& k, int n_threads) {
    kernels::Activations in;
    in.n_tokens = n_tokens, in.n_in = w.n_in, in.plain = in.rotated = x.data(), in.quantized = a.data(), in.scale = act_scale.data();
    const int64_t scratch_bytes = (k.linear_scratch_bytes(w.n_in, n_tokens) + 63) / 64 * 64;
    std::vector<std::unique_ptr<Memory>> scratch;
    for (int t = 0; t < n_threads; t++) scratch.push_back(std::make_unique<Memory>(scratch_bytes));
    const int64_t strips = tqn::strips(w.n_out);
    return time_threads(n_threads, [&](int t) {
      k.linear_int8(w, strips * t / n_threads, strips * (t + 1) / n_threads, in, 1, false, y.data(), w.n_out, scratch[t]->data);
    });
  }
};

// The plain way: row-major 2-bit codes, a four-entry table, one multiplication a weight.
void plain_2bit(const uint8_t* codes, int64_t bytes, int64_t n_in, const int8_t* table, const int8_t* a, int32_t* y) {
  for (int64_t row = 0; row < bytes * 4 / n_in; row++) {
    int32_t total = 0;
    const uint8_t* p = codes + row * n_in / 4;
    for (int64_t i = 0; i < n_in / 4; i++)
      for (int j = 0; j < 4; j++) total += table[p[i] >> (2 * j) & 3] * a[4 * i + j];
    y[row] = total;
  }
}

void print_gemv(const std::vector<const Kernels*>& tables, const double* bandwidth) {
  std::printf("\n| kernel | k | threads | G weights/s/core | GB/s | %% of read bandwidth |\n|---|---|---|---|---|---|\n");
  for (int threads = 1; threads <= kMaxThreads; threads++)
    std::printf("| read loop | - | %d | - | %.1f | 100 |\n", threads, bandwidth[threads] / 1e9);
  {
    Problem p(2, 4096, kColdBytes / 8, 1);
    std::vector<int32_t> y(p.w.n_out);
    const double s =
        time_threads(1, [&](int) { plain_2bit(p.codes.data, int64_t(p.bytes()), 4096, p.codebook.data(), p.a.data(), y.data()); });
    std::printf("| plain 2-bit look-up | 2 | 1 | %.2f | %.2f | %.0f |\n", p.weights() / s / 1e9, p.bytes() / s / 1e9,
                100 * p.bytes() / s / bandwidth[1]);
  }
  for (const Kernels* isa : tables)
    for (int k : tqn::Formats::bits) {
      Problem p(k, 4096, isa->isa == "scalar" ? 4 << 20 : kColdBytes, 1);
      for (int threads = 1; threads <= kMaxThreads; threads++) {
        const double s = p.seconds(*isa, threads);
        std::printf("| %s | %d | %d | %.1f | %.1f | %.0f |\n", isa->isa.data(), k, threads, p.weights() / s / 1e9 / threads,
                    p.bytes() / s / 1e9, 100 * p.bytes() / s / bandwidth[threads]);
        std::fflush(stdout);
      }
    }
}

void print_few_tokens(const std::vector<const Kernels*>& tables) {
  std::printf(
      "\nFew tokens, one core, 64 MiB of codes: G weights x tokens/s\n\n| kernel | k | 1 | 2 | 3 | 4 | 5 | 6 | 8 "
      "|\n|---|---|---|---|---|---|---|---|---|\n");
  for (const Kernels* isa : tables)
    for (int k : {2, 3, 4}) {
      if (isa->isa == "scalar") continue;
      std::printf("| %s | %d |", isa->isa.data(), k);
      for (int n_tokens : {1, 2, 3, 4, 5, 6, 8}) {
        Problem p(k, 4096, 64 << 20, n_tokens);
        std::printf(" %.1f |", p.weights() * n_tokens / p.seconds(*isa, 1) / 1e9);
      }
      std::printf("\n");
    }
}

void print_gemm(const std::vector<const Kernels*>& tables) {
  std::printf("\n| kernel | k | tokens | GOP/s, 1 thread | %% of int8 dot peak | GOP/s, %d threads |\n|---|---|---|---|---|---|\n",
              kMaxThreads);
  for (const Kernels* isa : tables) {
    if (isa->isa == "scalar") continue;
    const double peak = dot_peak(isa->isa);
    std::printf("| %s, registers only | - | - | %.0f | 100 | - |\n", isa->isa.data(), peak / 1e9);
    for (int k : {2, 3, 4, 8})
      for (int n_tokens : {16, 64, 512}) {
        Problem p(k, 2048, int64_t(2048) * 1024 * k / 8, n_tokens);
        const double operations = 2 * p.weights() * n_tokens, one = operations / p.seconds(*isa, 1);
        std::printf("| %s | %d | %d | %.0f | %.0f | %.0f |\n", isa->isa.data(), k, n_tokens, one / 1e9, peak > 0 ? 100 * one / peak : 0,
                    operations / p.seconds(*isa, kMaxThreads) / 1e9);
        std::fflush(stdout);
      }
  }
}

double microseconds(int n, const std::function<void()>& call) {
  return time_threads(1,
                      [&](int) {
                        for (int i = 0; i < n; i++) call();
                      }) /
         n * 1e6;
}

void print_dense(const std::vector<const Kernels*>& tables) {
  std::printf(
      "\nUnquantized float32, 2048 x 2048, one core: GFLOP/s at 1, 8, 64, 512 tokens\n\n| kernel | 1 | 8 | 64 | 512 "
      "|\n|---|---|---|---|---|\n");
  const int64_t n = 2048;
  const std::vector<float> w(n * n, 0.5f), x(n * 512, 0.5f);
  std::vector<float> y(n * 512);
  for (const Kernels* isa : tables) {
    std::printf("| %s |", isa->isa.data());
    for (int n_tokens : {1, 8, 64, 512}) {
      if (isa->isa == "scalar" && n_tokens > 8) continue;
      const double us = microseconds(
          1, [&] { isa->linear_dense({kernels::DType::f32, n, n, w.data()}, 0, n, x.data(), n_tokens, 1, false, y.data(), n); });
      std::printf(" %.1f |", 2e-3 * double(n * n * n_tokens) / us);
    }
    std::printf("\n");
  }
}

void print_vector(const std::vector<const Kernels*>& tables) {
  std::printf(
      "\nMicroseconds a row, in cache\n\n| kernel | rotate 2048 | rotate 1536 | rotate 14336 | rotate 11008 | quantize 2048 | rms_norm "
      "2048 | silu_mul 8192 | "
      "attention 64 x 1024 |\n|---|---|---|---|---|---|---|---|---|\n");
  std::vector<float> x(16384, 0.7f), y(16384), z(16384, 0.3f);
  std::vector<int8_t> a(16384);
  std::vector<uint16_t> kv(1024 * 64, f32_to_f16(0.1f));
  for (const Kernels* isa : tables) {
    std::printf("| %s |", isa->isa.data());
    for (int n : {2048, 1536, 14336, 11008}) {
      const auto plan = kernels::RotationPlan::make(n, 1);
      std::printf(" %.2f |", microseconds(200, [&] { isa->rotate(plan, x.data(), y.data()); }));
    }
    std::printf(" %.2f |", microseconds(2000, [&] { isa->quantize(x.data(), 2048, a.data()); }));
    std::printf(" %.2f |", microseconds(2000, [&] { isa->rms_norm(x.data(), z.data(), 2048, 1e-5f, y.data()); }));
    std::printf(" %.2f |", microseconds(500, [&] { isa->silu_mul(x.data(), z.data(), 8192, y.data()); }));
    kernels::AttentionShape shape;
    shape.head_dim = 64, shape.scale = 0.125f;
    std::printf(" %.2f |\n", microseconds(100, [&] {
                  kernels::AttentionQuery query{.q = x.data(), .out = y.data()};
                  isa->attention(shape, &query, 1, kv.data(), kv.data(), 64, 0, 1024);
                }));
  }
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<const Kernels*> tables;
  for (int i = 1; i < argc; i++) {
    if (std::string_view(argv[i]) == "--quick")
      repetitions = 3;
    else
      tables.push_back(&kernels::kernels_named(argv[i]));
  }
  if (tables.empty()) tables.assign(kernels::all_kernels().begin(), kernels::all_kernels().end());
  double bandwidth[kMaxThreads + 1] = {};
  {
    Memory memory(kColdBytes);
    memory.fill_random();
    for (int t = 1; t <= kMaxThreads; t++) bandwidth[t] = read_bandwidth(memory, t);
  }
  print_gemv(tables, bandwidth);
  print_few_tokens(tables);
  print_gemm(tables);
  print_dense(tables);
  print_vector(tables);
}
