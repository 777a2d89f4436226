#include <bit>

#include "check.h"
#include "format/matrix.h"

TEST("every float16 survives the way to float32 and back") {
  for (uint32_t bits = 0; bits < 65536; bits++) {
    const float value = tq::f16_to_f32(uint16_t(bits));
    if (value == value)
      CHECK_EQ(tq::f32_to_f16(value), uint16_t(bits));
    else
      CHECK(std::isnan(tq::f16_to_f32(tq::f32_to_f16(value))));
  }
}

TEST("float16 rounds to nearest, ties to even") {
  for (uint32_t bits = 0; bits < 0x7BFF; bits++) {
    const float low = tq::f16_to_f32(uint16_t(bits)), high = tq::f16_to_f32(uint16_t(bits + 1));
    const float middle = low + (high - low) / 2;  // exact in float32
    CHECK_EQ(tq::f32_to_f16(middle), uint16_t(bits + (bits & 1)));
    CHECK_EQ(tq::f32_to_f16(std::nextafter(middle, 0.f)), uint16_t(bits));
    CHECK_EQ(tq::f32_to_f16(std::nextafter(middle, INFINITY)), uint16_t(bits + 1));
  }
  CHECK_EQ(tq::f32_to_f16(65519.f), 0x7BFF);
  CHECK_EQ(tq::f32_to_f16(65520.f), 0x7C00);
  CHECK_EQ(tq::f32_to_f16(-1e30f), 0xFC00);
}

TEST("bfloat16 rounds to nearest, ties to even") {
  for (uint32_t bits = 0; bits < 65536; bits++) {
    const float value = tq::bf16_to_f32(uint16_t(bits));
    if (value == value) CHECK_EQ(tq::f32_to_bf16(value), uint16_t(bits));
  }
  CHECK_EQ(tq::f32_to_bf16(std::bit_cast<float>(0x3F808000u)), 0x3F80);
  CHECK_EQ(tq::f32_to_bf16(std::bit_cast<float>(0x3F818000u)), 0x3F82);
}
