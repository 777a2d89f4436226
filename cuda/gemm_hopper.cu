// y = X W^T in int8 on Hopper: warpgroup products (wgmma) of 64 tokens x 256 weight rows straight from shared memory. Operands lie in
// device memory as the tiles that a stage holds, swizzled, so that one thread brings a stage with two bulk copies; two warpgroups multiply.
#include "device.h"
#include "epilogue.cuh"
#include "gemm_hopper.h"
#include "mma.cuh"

namespace tq::cuda {
namespace {

constexpr int kStages = 4;
constexpr int kConsumers = 256;  // threads that multiply, then one warp that copies
constexpr int kThreads = kConsumers + 32;
constexpr int kMmaDepth = 32;
constexpr int kTokenBytes = kTokenTile * kTileDepth, kWeightBytes = kWeightTile * kTileDepth, kStageBytes = kTokenBytes + kWeightBytes;
constexpr int kSwizzleAlign = 1024;
constexpr int kSharedBytes = kStages * kStageBytes + kSwizzleAlign;

struct Operands {
  const int8_t *x, *w;
  int stages;  // of kTileDepth columns
  int tokens;
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// Shared-memory descriptor: rows of 128 bytes, swizzled, groups of eight rows 1024 bytes apart.
__device__ inline uint64_t describe(uint32_t address) {
  return uint64_t((address & 0x3FFFF) >> 4) | uint64_t(1) << 16 | uint64_t(1024 >> 4) << 32 | uint64_t(1) << 62;
}

// d += A B^T: A 64 x 32, B 256 x 32 int8 in shared memory; lane 4g + t of warp w holds rows 16w + g (+ 8), columns 8j + 2t, + 1 as d[4j ..
// 4j + 3].
__device__ inline void warpgroup_mma(int (&d)[128], uint64_t a, uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n256k32.s32.s8.s8 {"
      "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
      "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
      "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"
      "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63,"
      "%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,"
      "%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95,"
      "%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,"
      "%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"
      "}, %128, %129, 1;"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3]), "+r"(d[4]), "+r"(d[5]), "+r"(d[6]), "+r"(d[7]), "+r"(d[8]), "+r"(d[9]), "+r"(d[10]),
        "+r"(d[11]), "+r"(d[12]), "+r"(d[13]), "+r"(d[14]), "+r"(d[15]), "+r"(d[16]), "+r"(d[17]), "+r"(d[18]), "+r"(d[19]), "+r"(d[20]),
        "+r"(d[21]), "+r"(d[22]), "+r"(d[23]), "+r"(d[24]), "+r"(d[25]), "+r"(d[26]), "+r"(d[27]), "+r"(d[28]), "+r"(d[29]), "+r"(d[30]),
        "+r"(d[31]), "+r"(d[32]), "+r"(d[33]), "+r"(d[34]), "+r"(d[35]), "+r"(d[36]), "+r"(d[37]), "+r"(d[38]), "+r"(d[39]), "+r"(d[40]),
        "+r"(d[41]), "+r"(d[42]), "+r"(d[43]), "+r"(d[44]), "+r"(d[45]), "+r"(d[46]), "+r"(d[47]), "+r"(d[48]), "+r"(d[49]), "+r"(d[50]),
        "+r"(d[51]), "+r"(d[52]), "+r"(d[53]), "+r"(d[54]), "+r"(d[55]), "+r"(d[56]), "+r"(d[57]), "+r"(d[58]), "+r"(d[59]), "+r"(d[60]),
        "+r"(d[61]), "+r"(d[62]), "+r"(d[63]), "+r"(d[64]), "+r"(d[65]), "+r"(d[66]), "+r"(d[67]), "+r"(d[68]), "+r"(d[69]), "+r"(d[70]),
        "+r"(d[71]), "+r"(d[72]), "+r"(d[73]), "+r"(d[74]), "+r"(d[75]), "+r"(d[76]), "+r"(d[77]), "+r"(d[78]), "+r"(d[79]), "+r"(d[80]),
        "+r"(d[81]), "+r"(d[82]), "+r"(d[83]), "+r"(d[84]), "+r"(d[85]), "+r"(d[86]), "+r"(d[87]), "+r"(d[88]), "+r"(d[89]), "+r"(d[90]),
        "+r"(d[91]), "+r"(d[92]), "+r"(d[93]), "+r"(d[94]), "+r"(d[95]), "+r"(d[96]), "+r"(d[97]), "+r"(d[98]), "+r"(d[99]), "+r"(d[100]),
        "+r"(d[101]), "+r"(d[102]), "+r"(d[103]), "+r"(d[104]), "+r"(d[105]), "+r"(d[106]), "+r"(d[107]), "+r"(d[108]), "+r"(d[109]),
        "+r"(d[110]), "+r"(d[111]), "+r"(d[112]), "+r"(d[113]), "+r"(d[114]), "+r"(d[115]), "+r"(d[116]), "+r"(d[117]), "+r"(d[118]),
        "+r"(d[119]), "+r"(d[120]), "+r"(d[121]), "+r"(d[122]), "+r"(d[123]), "+r"(d[124]), "+r"(d[125]), "+r"(d[126]), "+r"(d[127])
      : "l"(a), "l"(b));
}

// A stage's barriers: `full` counts its bytes, `empty` the warps that are done with it.
struct Barriers {
  uint64_t full[kStages], empty[kStages];
};

__device__ inline void init_barrier(uint64_t& barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(&barrier)), "r"(arrivals) : "memory");
}
__device__ inline void arrive(uint64_t& barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(&barrier)) : "memory");
}
__device__ inline void wait(uint64_t& barrier, uint32_t parity) {
  asm volatile(
      "{\n.reg .pred done;\n"
      "again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n}" ::"r"(shared_address(&barrier)),
      "r"(parity)
      : "memory");
}
__device__ inline void copy_bulk(uint32_t to, const int8_t* from, int bytes, uint64_t& barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to), "l"(from), "r"(bytes),
               "r"(shared_address(&barrier))
               : "memory");
}

__device__ inline void copy_stages(const Operands& o, uint32_t base, Barriers& barriers) {
  const int8_t* x = o.x + int64_t(blockIdx.x) * o.stages * kTokenBytes;
  const int8_t* w = o.w + int64_t(blockIdx.y) * o.stages * kWeightBytes;
  for (int s = 0; s < o.stages; s++, x += kTokenBytes, w += kWeightBytes) {
    const int slot = s % kStages;
    wait(barriers.empty[slot], (s / kStages + 1) % 2);  // the first round finds it free
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(&barriers.full[slot])), "r"(kStageBytes)
                 : "memory");
    copy_bulk(base + slot * kStageBytes, x, kTokenBytes, barriers.full[slot]);
    copy_bulk(base + slot * kStageBytes + kTokenBytes, w, kWeightBytes, barriers.full[slot]);
  }
}

__device__ inline void multiply_stage(uint32_t at, int (&sums)[128]) {
  const uint64_t a = describe(at + threadIdx.x / 128 * 64 * kTileDepth), b = describe(at + kTokenBytes);
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
  for (int k = 0; k < kTileDepth / kMmaDepth; k++) warpgroup_mma(sums, a + k * (kMmaDepth >> 4), b + k * (kMmaDepth >> 4));
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
__device__ inline void wait_products() { asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory"); }

#endif

struct Scales {
  const uint16_t* row;
  const float* token;
  float all;
};

__global__ void __launch_bounds__(kThreads, 1) hopper_kernel(const __grid_constant__ Operands o, const __grid_constant__ Scales scales,
                                                             const __grid_constant__ OutputView out, int n_out) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ char shared[];
  __shared__ Barriers barriers;
  const uint32_t base = (shared_address(shared) + kSwizzleAlign - 1) / kSwizzleAlign * kSwizzleAlign;
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; i++) init_barrier(barriers.full[i], 1), init_barrier(barriers.empty[i], kConsumers / kWarp);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();
  if (threadIdx.x >= kConsumers) {
    if (threadIdx.x == kConsumers) copy_stages(o, base, barriers);
    return;
  }
  const int lane = threadIdx.x % kWarp;
  int sums[128] = {};
  for (int s = 0; s < o.stages; s++) {
    const int slot = s % kStages;
    wait(barriers.full[slot], s / kStages % 2);
    multiply_stage(base + slot * kStageBytes, sums);
    wait_products();
    if (lane == 0) arrive(barriers.empty[slot]);
  }
  const int token = blockIdx.x * kTokenTile + threadIdx.x / kWarp * 16 + lane / 4, first_row = blockIdx.y * kWeightTile;
#pragma unroll
  for (int i = 0; i < 128; i++) {
    const int t = token + i / 2 % 2 * 8, r = first_row + i / 4 * 8 + lane % 4 * 2 + i % 2;
    if (t < o.tokens && r < n_out) write_output(out, t, r, scales.all * half_value(scales.row[r]) * scales.token[t] * float(sums[i]));
  }
#endif
}

}  // namespace

bool has_hopper_gemm() {
#ifdef TQ_CUDA_SM90A
  return device_limits().capability == 90;
#else
  return false;
#endif
}

void gemm_int8_hopper(const PackedView& m, const int8_t* weights, const InputView& in, const OutputView& out, cudaStream_t stream) {
  const Operands o{in.quantized, weights, int(in.quantized_stride() / kTileDepth), in.rows};
  allow_shared(hopper_kernel, kSharedBytes);
  const dim3 grid((in.rows + kTokenTile - 1) / kTokenTile, (m.n_out + kWeightTile - 1) / kWeightTile);
  hopper_kernel<<<grid, kThreads, kSharedBytes, stream>>>(o, {m.row_scale, in.scale, m.scale}, out, m.n_out);
  check_launch("gemm_int8_hopper");
}

}  // namespace tq::cuda
