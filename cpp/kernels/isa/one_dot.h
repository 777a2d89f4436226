// Where one dot product serves all codes.
#pragma once

namespace tq::kernels::TQ_ISA_NAMESPACE {

inline bool suits_codebook_dot(const int8_t*) { return true; }
inline I32 codebook_dot(I32 acc, Row w, Acts a) { return dot(acc, w, a); }

}  // namespace tq::kernels::TQ_ISA_NAMESPACE
