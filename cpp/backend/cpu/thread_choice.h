// How many threads to generate with on a machine that others use too. A thread that the system has taken off its core holds up all others
// at the next barrier, so that fewer threads can be several times as fast. As long as no thread sleeps at barriers, all run and nothing is
// tried; otherwise fewer are tried for some passes, and more again from time to time.
#pragma once
#include <algorithm>

namespace tq::cpu {

class ThreadChoice {
 public:
  explicit ThreadChoice(int all = 1) : all_(all), home_(all), now_(all) {}
  int threads() const { return now_; }

  // After a pass on threads(): its time, and the times that its threads slept at barriers, summed.
  void passed(double seconds, double slept) {
    if (now_ != home_) return tried(seconds);
    home_seconds_ += (seconds - home_seconds_) / ++passes_;
    passes_ = std::min(passes_, kAverage);
    const bool held_up = slept > (now_ - 1) * seconds / 4;
    held_up_ = held_up ? held_up_ + kOften / 2 : std::max(held_up_ - 1, 0);
    if (rest_ > 0) {
      rest_--;
    } else if (held_up_ >= kOften && home_ > 1) {
      now_ = home_ - step();
    } else if (home_ < all_) {
      now_ = std::min(home_ + step(), all_);
    }
  }

 private:
  static constexpr int kAverage = 8;  // passes
  static constexpr int kTrial = 4;    // passes with another number of threads
  static constexpr int kOften = 8;    // two passes held up soon after one another
  static constexpr int kRest = 16, kMostRest = 256;

  int step() const { return std::max(home_ / 4, 1); }

  void tried(double seconds) {
    trial_seconds_ += seconds, trials_++;
    const bool worse = seconds > 2 * home_seconds_ || trial_seconds_ > kTrial * home_seconds_;
    if (!worse && trials_ < kTrial) return;
    if (worse) {
      now_ = home_, patience_ = std::min(2 * patience_, kMostRest);
    } else {
      home_ = now_, home_seconds_ = trial_seconds_ / trials_, passes_ = trials_, patience_ = kRest;
    }
    rest_ = patience_, held_up_ = 0, trials_ = 0, trial_seconds_ = 0;
  }

  int all_, home_, now_;  // home: the best number known
  double home_seconds_ = 0, trial_seconds_ = 0;
  int passes_ = 0, trials_ = 0, held_up_ = 0, rest_ = 0, patience_ = kRest;
};

}  // namespace tq::cpu
