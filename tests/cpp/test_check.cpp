// The comparisons that other tests rest on fail where they should.
#include <limits>
#include <vector>

#include "check.h"

static const double kNaN = std::numeric_limits<double>::quiet_NaN();

TEST("a difference that is not a number is infinite, wherever it stands") {
  const std::vector<double> good{1, 2, 3};
  CHECK(check::largest_difference(good, good) == 0);
  CHECK(check::largest_difference(std::vector<float>{1, 2.5f, 3}, good) == 0.5);
  for (size_t at = 0; at < 3; at++)
    for (const double bad : {kNaN, HUGE_VAL, -HUGE_VAL}) {
      std::vector<double> changed = good;
      changed[at] = bad;
      CHECK(std::isinf(check::largest_difference(changed, good)));
      CHECK(std::isinf(check::largest_difference(good, changed)));
      CHECK(std::isinf(check::largest_difference(changed, changed)));  // infinity - infinity too
    }
}

TEST("lists of different lengths differ") {
  const std::vector<double> good{1, 2, 3}, shorter{1, 2};
  CHECK(std::isinf(check::largest_difference(good, shorter)));
  CHECK(std::isinf(check::largest_difference(shorter, good)));
}

TEST("a check against a bound fails for NaN, and is counted") {
  const int before = check::failures;
  CHECK_NEAR(kNaN, 0, 1);
  CHECK_NEAR(0, kNaN, 1);
  CHECK_NEAR(0, 0, kNaN);
  CHECK_NEAR(HUGE_VAL, 0, 1);
  const int counted = check::failures - before;
  check::failures = before;
  CHECK_EQ(counted, 4);
}
