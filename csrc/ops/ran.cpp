// SPDX-License-Identifier: Apache-2.0
#include "ran.h"

#include <mutex>
#include <unordered_set>

namespace softkern {
namespace {

thread_local Ran ran_last = {"", ""};

const char* kept(const std::string& name) {
  static std::mutex mutex;
  static auto& names = *new std::unordered_set<std::string>;
  const std::lock_guard<std::mutex> lock(mutex);
  return names.insert(name).first->c_str();
}

}  // namespace

const Ran& last_ran() { return ran_last; }

void set_last_ran(const Ran& ran) { ran_last = ran; }

void set_last_ran_by_name(const std::string& isa, const std::string& path) {
  set_last_ran({kept(isa), kept(path)});
}

}  // namespace softkern
