// The choice of threads, on machines that are sums.
#include "backend/cpu/thread_choice.h"
#include "check.h"

using tq::cpu::ThreadChoice;

namespace {

// A pass takes 1 / threads; on a busy machine more than `free` threads hold each other up: it takes 3 instead, most of it asleep.
struct Machine {
  int free;
  ThreadChoice choice;
  double run(int passes) {  // the mean number of threads
    double total = 0;
    for (int i = 0; i < passes; i++) {
      const int threads = choice.threads();
      total += threads;
      if (threads > free)
        choice.passed(3, 2 * (threads - 1));
      else
        choice.passed(1.0 / threads, 0.01 * (threads - 1) / threads);
    }
    return total / passes;
  }
};

}  // namespace

TEST("a quiet machine: all threads, always") {
  for (int all : {1, 2, 8}) {
    Machine quiet{all, ThreadChoice(all)};
    CHECK(quiet.run(1000) == all);
  }
}

TEST("a single pass that was held up changes nothing") {
  Machine quiet{2, ThreadChoice(2)};
  for (int i = 0; i < 20; i++) {
    quiet.choice.passed(3, 2);
    CHECK_EQ(quiet.choice.threads(), 2);
    CHECK(quiet.run(50) == 2);
  }
}

TEST("a busy machine: fewer threads, and rarely a look at more") {
  Machine busy{1, ThreadChoice(2)};
  busy.run(10);
  CHECK_EQ(busy.choice.threads(), 1);
  CHECK(busy.run(1000) < 1.03);
  busy.free = 2;  // the others have gone
  busy.run(300);
  CHECK(busy.run(1000) == 2);
}

TEST("many threads go down step by step to what is free, and up again") {
  Machine busy{4, ThreadChoice(8)};
  busy.run(200);
  CHECK(busy.run(1000) < 4.1);
  CHECK(busy.run(1000) > 3.9);
  busy.free = 8;
  busy.run(600);
  CHECK_EQ(busy.choice.threads(), 8);
}

TEST("threads that sleep but are no slower alone stay") {
  ThreadChoice choice(2);  // long steps end unevenly: half of the time one thread sleeps, and yet two are faster
  int fewer = 0;
  for (int i = 0; i < 3000; i++) {
    fewer += choice.threads() == 1;
    choice.passed(choice.threads() == 2 ? 0.7 : 1, choice.threads() == 2 ? 0.3 : 0);
  }
  CHECK(fewer < 60);
}
