// SPDX-License-Identifier: Apache-2.0
#include "backend.h"

#include <atomic>

#include "../cpu/dispatch.h"

namespace softkern {
namespace {

enum class Named { kNothing, kIsa, kTriton };
enum class Answer { kUnasked, kNo, kYes };

std::atomic<Named> process_named{Named::kNothing};
thread_local Named thread_named = Named::kNothing;

std::atomic<Answer> answers[c10::COMPILE_TIME_MAX_DEVICE_TYPES];

std::function<bool(const std::string&)>& triton_probe() {
  // Never destroyed: a thread may ask while the process ends.
  static auto& probe = *new std::function<bool(const std::string&)>;
  return probe;
}

Named named() {
  return thread_named != Named::kNothing ? thread_named : process_named.load(std::memory_order_relaxed);
}

bool triton_computes_on(c10::DeviceType type) {
  std::atomic<Answer>& answer = answers[static_cast<int>(type)];
  Answer known = answer.load(std::memory_order_acquire);
  if (known == Answer::kUnasked) {
    try {
      const auto& probe = triton_probe();
      known = probe && probe(c10::DeviceTypeName(type, /*lower_case=*/true)) ? Answer::kYes : Answer::kNo;
    } catch (...) {
      if (triton_named()) throw;
      known = Answer::kNo;
    }
    answer.store(known, std::memory_order_release);
  }
  return known == Answer::kYes;
}

}  // namespace

void choose_for_process(const std::string& name, bool required) {
  if (name == kTriton) {
    process_named = Named::kTriton;
  } else {
    cpu::choose_for_process(name);
    process_named = required && !name.empty() ? Named::kIsa : Named::kNothing;
  }
}

void choose_for_thread(const std::string& name) {
  if (name == kTriton) {
    cpu::choose_for_thread("");
    thread_named = Named::kTriton;
  } else {
    cpu::choose_for_thread(name);
    thread_named = name.empty() ? Named::kNothing : Named::kIsa;
  }
}

std::string thread_choice() {
  return thread_named == Named::kTriton ? std::string(kTriton) : cpu::thread_choice();
}

std::string required() {
  switch (named()) {
    case Named::kTriton:
      return kTriton;
    case Named::kIsa:
      return cpu::active().isa;
    default:
      return "";
  }
}

bool triton_named() { return named() == Named::kTriton; }

bool computes_on(c10::DeviceType type) {
  switch (type) {
    case c10::DeviceType::CPU:
      return !triton_named() || triton_computes_on(type);
    case c10::DeviceType::CUDA:
    case c10::DeviceType::XPU:
      return named() != Named::kIsa && triton_computes_on(type);
    default:
      return false;
  }
}

void set_triton_probe(std::function<bool(const std::string&)> probe) {
  triton_probe() = std::move(probe);
  for (std::atomic<Answer>& answer : answers) answer = Answer::kUnasked;
}

}  // namespace softkern
