// SPDX-License-Identifier: Apache-2.0
// What Python asks without tensors, as functions of C: softkern/_binding/c_api.py calls them by ctypes, so
// that the library needs no symbol of Python. Texts are valid until the calling thread's next call. Lines of
// a text end with a newline, fields of a line are separated by tabs.
#include <stdexcept>
#include <string>

#include "build.h"
#include "cpu/dispatch.h"
#include "cpu/memory.h"
#include "ops/backend.h"
#include "ops/cpu/patience.h"
#include "ops/onnx.h"
#include "ops/ops.h"
#include "ops/ran.h"

#define SOFTKERN_C extern "C" __attribute__((visibility("default")))

namespace {

thread_local std::string text;
thread_local std::string raised;  // by the Triton probe

const char* kept(std::string given) {
  text = std::move(given);
  return text.c_str();
}

/// "", or the name of Python's exception and its text.
template <class F>
const char* outcome(F f) {
  try {
    f();
    return "";
  } catch (const std::invalid_argument& error) {
    return kept(std::string("ValueError\t") + error.what());
  } catch (const std::exception& error) {
    return kept(std::string("RuntimeError\t") + error.what());
  }
}

}  // namespace

SOFTKERN_C const char* softkern_op_names() {
  std::string lines;
  softkern::for_each_op([&](const auto& op) { lines += std::string(op.kName) + '\n'; });
  return kept(lines);
}

SOFTKERN_C const char* softkern_isas() {
  std::string lines;
  for (const softkern::cpu::Isa& isa : softkern::cpu::isas()) {
    lines += std::string(isa.name) + '\t' + (isa.table != nullptr ? '1' : '0') + '\t' + isa.reason + '\n';
  }
  return kept(lines);
}

SOFTKERN_C const char* softkern_active_isa() { return softkern::cpu::active().isa; }
SOFTKERN_C const char* softkern_last_isa() { return softkern::last_ran().isa; }
SOFTKERN_C const char* softkern_last_path() { return softkern::last_ran().path; }
SOFTKERN_C void softkern_set_last(const char* isa, const char* path) {
  softkern::set_last_ran_by_name(isa, path);
}

SOFTKERN_C const char* softkern_why_no_cuda(int device) { return kept(softkern::why_no_cuda(device)); }

SOFTKERN_C const char* softkern_choose_for_process(const char* name, int required) {
  return outcome([&] { softkern::choose_for_process(name, required != 0); });
}
SOFTKERN_C const char* softkern_choose_for_thread(const char* name) {
  return outcome([&] { softkern::choose_for_thread(name); });
}
SOFTKERN_C const char* softkern_thread_choice() { return kept(softkern::thread_choice()); }
SOFTKERN_C const char* softkern_required() { return kept(softkern::required()); }

/// The probe returns 1 for yes, 0 for no, and -1 if it raised, after softkern_raise with the text.
SOFTKERN_C void softkern_set_triton_probe(int (*probe)(const char* device_type)) {
  softkern::set_triton_probe([probe](const std::string& device_type) {
    const int answer = probe(device_type.c_str());
    if (answer < 0) throw std::runtime_error(raised);
    return answer != 0;
  });
}
SOFTKERN_C void softkern_raise(const char* what) { raised = what; }

SOFTKERN_C void softkern_set_onnx_probe(int (*probe)()) {
  softkern::set_onnx_probe([probe] { return probe() != 0; });
}

SOFTKERN_C int softkern_huge_pages_wanted() { return softkern::cpu::huge_pages_wanted(); }
SOFTKERN_C void softkern_set_patience(double seconds) { softkern::cpu::Patience::set_limit(seconds); }

SOFTKERN_C const char* softkern_build() {
  const softkern::Build& build = softkern::kBuild;
  return kept(std::string("compiler\t") + build.compiler + "\ncxx_standard\t" +
              std::to_string(build.cxx_standard) + "\ntorch\t" + build.torch + "\nversion\t" + build.version +
              "\ncuda_architectures\t" + build.cuda_architectures + "\ncuda_emulated\t" +
              (build.cuda_emulated ? "1" : "") + '\n');
}
