// The table of one instruction set: included last by each kernels_ISA.cpp.
#pragma once
#include "kernels/body/attention.h"
#include "kernels/body/attention_coded.h"
#include "kernels/body/delta.h"
#include "kernels/body/dense.h"
#include "kernels/body/float.h"
#include "kernels/body/int8.h"
#include "kernels/body/rotation.h"
#include "kernels/body/rows.h"
#include "kernels/body/vector.h"

namespace tq::kernels::TQ_ISA_NAMESPACE {

extern const Kernels table;
const Kernels table = {
    .isa = kName,
    .linear_scratch_bytes = Int8Scratch::bytes,
    .linear_int8 = linear_int8,
    .linear_float = linear_float,
    .accumulate = accumulate,
    .linear_dense = linear_dense,
    .tqn_row = tqn_row,
    .dense_row = dense_row,
    .rotate = rotate,
    .rotate_inverse = rotate_inverse,
    .quantize = quantize,
    .rms_norm = rms_norm,
    .silu_mul = silu_mul,
    .sigmoid_mul = sigmoid_mul,
    .gelu_mul = gelu_mul,
    .clamped_swiglu = clamped_swiglu,
    .add_scaled = add_scaled,
    .soft_cap = soft_cap,
    .rope_neox = rope_neox,
    .rope_pairs = rope_pairs,
    .to_f16 = to_f16,
    .to_f32 = to_f32,
    .attention = attention<ElementF16>,
    .attention_f32 = attention<ElementF32>,
    .convolve = convolve,
    .delta_rule = delta_rule,
    .attention_coded = attention_coded,
};

}  // namespace tq::kernels::TQ_ISA_NAMESPACE
