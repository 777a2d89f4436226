// Where a pass spends its time.
#pragma once
#include <chrono>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace tq::cpu {

using Clock = std::chrono::steady_clock;

// Where one thread's time goes, by kind of work.
class Profile {
 public:
  Clock::duration spent() const { return spent_; }
  void add(std::string_view kind, Clock::duration time) { spent_ += time, times_[kind] += time; }
  // All kinds with their seconds; counts anew.
  std::vector<std::pair<std::string, double>> take() {
    std::vector<std::pair<std::string, double>> found;
    for (const auto& [kind, time] : times_) found.emplace_back(kind, std::chrono::duration<double>(time).count());
    times_.clear();
    return found;
  }

 private:
  Clock::duration spent_{};
  std::map<std::string_view, Clock::duration> times_;
};

// Counts its lifetime as time of one kind, less what others counted within it. Does nothing without a profile.
class Timed {
 public:
  Timed(Profile* profile, std::string_view kind) : profile_(profile), kind_(kind) {
    if (profile_) spent_ = profile_->spent(), start_ = Clock::now();
  }
  ~Timed() {
    if (profile_) profile_->add(kind_, Clock::now() - start_ - (profile_->spent() - spent_));
  }
  Timed(const Timed&) = delete;
  Timed& operator=(const Timed&) = delete;

 private:
  Profile* profile_;
  std::string_view kind_;
  Clock::time_point start_;
  Clock::duration spent_{};
};

}  // namespace tq::cpu
