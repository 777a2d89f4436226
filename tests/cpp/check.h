// A small test harness: TEST("name") { CHECK(condition); CHECK_NEAR(a, b, bound); CHECK_THROWS(expression, Cause::bad_file, "text in the
// message"); } Every test of the file runs; the process fails when one check did. An argument selects tests whose name contains it.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "common/error.h"

namespace check {

struct Case {
  const char* name;
  void (*body)();
};
inline std::vector<Case> cases;
inline int failures = 0, checks = 0;
struct Register {
  Register(const char* name, void (*body)()) { cases.push_back({name, body}); }
};
inline void fail(const char* file, int line, const std::string& what) {
  if (++failures <= 50) std::fprintf(stderr, "%s:%d: %s\n", file, line, what.c_str());
}

// The larger of a difference so far and |found - expected|; infinite from the first NaN or infinity on: std::max alone would pass over a
// NaN.
inline double worse(double so_far, double found, double expected) {
  const double difference = std::fabs(found - expected);
  return std::isfinite(difference) ? std::max(so_far, difference) : INFINITY;
}
// The largest |found - expected| of two lists; infinite when they differ in length.
template <class Found, class Expected>
double largest_difference(const Found& found, const Expected& expected) {
  double worst = found.size() == expected.size() ? 0 : INFINITY;
  for (size_t i = 0; i < std::min(found.size(), expected.size()); i++) worst = worse(worst, double(found[i]), double(expected[i]));
  return worst;
}

}  // namespace check

#define CHECK_CONCAT_(a, b) a##b
#define CHECK_CONCAT(a, b) CHECK_CONCAT_(a, b)
#define TEST(name)                                                                               \
  static void CHECK_CONCAT(test_, __LINE__)();                                                   \
  static check::Register CHECK_CONCAT(register_, __LINE__)(name, CHECK_CONCAT(test_, __LINE__)); \
  static void CHECK_CONCAT(test_, __LINE__)()
#define CHECK(condition) (++check::checks, (condition) ? void() : check::fail(__FILE__, __LINE__, "failed: " #condition))
#define CHECK_EQ(a, b)                                                                                                              \
  do {                                                                                                                              \
    const auto check_a = (a);                                                                                                       \
    const auto check_b = (b);                                                                                                       \
    ++check::checks;                                                                                                                \
    if (!(check_a == check_b))                                                                                                      \
      check::fail(__FILE__, __LINE__, std::string(#a " == " #b ": ") + std::to_string(check_a) + " vs " + std::to_string(check_b)); \
  } while (0)
#define CHECK_NEAR(a, b, bound)                                                                                             \
  do {                                                                                                                      \
    const double check_a = (a), check_b = (b), check_bound = (bound);                                                       \
    ++check::checks;                                                                                                        \
    if (!(std::fabs(check_a - check_b) <= check_bound))                                                                     \
      check::fail(__FILE__, __LINE__,                                                                                       \
                  std::string(#a " ~ " #b ": ") + std::to_string(check_a) + " vs " + std::to_string(check_b) + ", bound " + \
                      std::to_string(check_bound));                                                                         \
  } while (0)
#define CHECK_THROWS(expression, wanted_cause, text)                                                 \
  do {                                                                                               \
    ++check::checks;                                                                                 \
    try {                                                                                            \
      (void)(expression);                                                                            \
      check::fail(__FILE__, __LINE__, "did not throw: " #expression);                                \
    } catch (const tq::Error& e) {                                                                   \
      if (e.cause != (wanted_cause) || !std::strstr(e.what(), text))                                 \
        check::fail(__FILE__, __LINE__, std::string("wrong error of " #expression ": ") + e.what()); \
    }                                                                                                \
  } while (0)

int main(int argc, char** argv) {
  for (const auto& c : check::cases) {
    if (argc > 1 && !std::strstr(c.name, argv[1])) continue;
    const int before = check::failures;
    c.body();
    std::printf("%s %s\n", check::failures == before ? "ok  " : "FAIL", c.name);
  }
  std::printf("%d checks, %d failed\n", check::checks, check::failures);
  return check::failures ? 1 : 0;
}
