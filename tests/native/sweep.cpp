// SPDX-License-Identifier: Apache-2.0
// The kernels of every instruction set that runs here, on a sweep of shapes, layouts, types and options,
// without torch or Python: every tensor and the kernels' own memory stand between two pages that nobody may
// touch, once against the first and once against the second, and all instruction sets have to agree in every
// bit, long rows in chunks and results written past the caches too; and the bits are those of sweep.hashes,
// so that a change of all instruction sets shows as well. Prints what was compared; exit code 1 and the case,
// or the op and the way, where bits differ.
//   sweep [most classes]          compares; the hashes of rows of so many classes alone
//   sweep [most classes] hashes   prints what sweep.hashes should contain
//   sweep MOST from LEAST         leaves out fewer classes, and the hashes, which are of all of them
//   sweep sample                  every 13th case or so and their hashes, for a CPU that is emulated
#include "sweep_hashes.h"
#include "sweep_memory.h"
#include "sweep_rows.h"

namespace {

enum How { kByRows, kShared, kStreamed, kHows };

Results run(const KernelTable& table, const Case& c, How how, const std::string& logits,
            const std::string& others, const std::vector<int64_t>& targets) {
  const bool stream = how == kStreamed;
  const Kernels& kernels = *table.by_type[c.type];
  const size_t size = kSize[c.type], bytes = logits.size(), compute = c.type == kDouble ? 8 : 4;
  const Shape shape{c.classes, c.inner};
  const Caller call(table, c, how == kShared);
  const auto rows = [&](char* data) {
    if (c.inner == 1) return Rows{data, c.classes, 0, 1};
    return Rows{data, c.classes * c.inner, 1, c.classes == 1 ? 1 : c.inner};
  };
  Guarded x(bytes, c.at_end), p(bytes, c.at_end), y(bytes, c.at_end), d(bytes, c.at_end);
  Guarded t(c.rows * sizeof(int64_t), c.at_end), loss(c.rows * compute, c.at_end);
  Guarded weight(c.classes * size, c.at_end), factor(c.rows * compute, c.at_end);
  memcpy(p.data, others.data(), bytes);
  memcpy(weight.data, others.data(), c.classes * size);
  memcpy(t.data, targets.data(), c.rows * sizeof(int64_t));
  for (int64_t r = 0; r < c.rows; ++r)
    put(factor.data + r * compute, c.type == kDouble ? kDouble : kFloat, r % 5);

  Results out;
  const int computed = c.type == kDouble ? kDouble : kFloat;
  const auto keep = [&](const char* op, const char* way, const Guarded& result) {
    out.push_back({op, way, c.type, result.bytes()});
  };
  const auto keep_computed = [&](const char* op, const char* way, const Guarded& result) {
    out.push_back({op, way, computed, result.bytes()});
  };
  const auto fresh = [&] { memcpy(x.data, logits.data(), bytes); };
  fresh();
  const ForwardArgs forward{shape, rows(x.data), rows(y.data), stream};
  const BackwardArgs backward{shape, rows(p.data), rows(y.data), rows(d.data), stream};
  keep("softmax", call(kernels.softmax, forward), y);
  keep("softmax_backward", call(kernels.softmax_backward, backward), d);
  keep("log_softmax", call(kernels.log_softmax, forward), y);
  keep("log_softmax_backward", call(kernels.log_softmax_backward, backward), d);
  // Upstream gradients of a sum over classes, and of a sum over everything.
  for (const Rows& spread : {Rows{p.data, c.inner, c.inner == 1 ? 0 : 1, 0}, Rows{p.data, 0, 0, 0}}) {
    const BackwardArgs of_sum{shape, spread, rows(y.data), rows(d.data), stream};
    keep("softmax_backward", call(kernels.softmax_backward, of_sum), d);
    keep("log_softmax_backward", call(kernels.log_softmax_backward, of_sum), d);
  }
  if (c.type == kHalf) {
    keep_computed("mass", call(kernels.mass, MassArgs{shape, rows(p.data), loss.data}), loss);
  }
  keep("scale", call(kernels.scale, ScaleArgs{shape, rows(x.data), rows(d.data), factor.data, 1, stream}), d);
  for (int option = 0; option < 16; ++option) {
    const bool indices = option & 1, smooth = option & 2, weighted = option & 4, over_logits = option & 8;
    fresh();
    CrossEntropyArgs a{};
    a.shape = shape;
    a.logits = rows(x.data);
    if (indices) {
      a.target = reinterpret_cast<const int64_t*>(t.data);
    } else {
      a.probabilities = rows(p.data);
    }
    a.weight = weighted ? weight.data : nullptr;
    a.options.label_smoothing = smooth ? 0.1 : 0;
    a.loss = loss.data;
    a.grad = rows(over_logits ? x.data : d.data);
    a.grad_factor = 0.37;
    a.stream = stream && !over_logits;
    const char* const way = call(kernels.cross_entropy, a);
    keep_computed("cross_entropy", way, loss);
    keep("cross_entropy", way, over_logits ? x : d);
  }
  const RowLossCases cases(c, targets);
  // Every other layout: these cases take as long as all others together.
  const bool takes_row_losses = c.inner == 1 || c.inner == 9 || c.inner == 144;
  for (int number = 0; takes_row_losses && number < RowLossCases::kCases; ++number) {
    const bool over_logits = (number + number / 4) % 2 == 1;
    fresh();
    RowLossArgs a = cases.args(number, shape, rows(x.data), rows(over_logits ? x.data : d.data), rows(p.data),
                               t.data, weight.data);
    a.stream = stream && !over_logits;
    const char* const way = call(kernels.row_losses, a);
    out.push_back({"row_losses", way, computed, cases.bytes()});
    keep("row_losses", way, over_logits ? x : d);
    if (over_logits) continue;
    // The same gradient, of some classes after the other, from the numbers of the whole rows.
    const std::string whole = out.back().bytes;
    RowLossArgs part = cases.numbers(a);
    out.push_back({"row_losses_parts", call(kernels.row_losses, part), computed, cases.numbers_bytes()});
    const int64_t first = c.classes * 2 / 5;
    if (first > 0) {
      call(kernels.row_losses, cases.half(a, 0, first, size, 0));
      call(kernels.row_losses, cases.half(a, first, c.classes, size, 1));
      const char* const merged = call(kernels.row_merge, cases.merge(a));
      out.push_back({"row_merge", merged, computed, cases.bytes() + cases.numbers_bytes()});
      call(kernels.row_losses, part);  // the numbers of the rows in one part
    }
    memset(d.data, 0x5a, bytes);
    for (const auto& [begin, end] : {std::pair<int64_t, int64_t>{first, c.classes}, {0, first}}) {
      if (begin == end) continue;
      part = cases.some_classes(a, begin, end, size);
      call(kernels.row_losses, part);
    }
    if (!same({"", "", c.type, whole}, {"", "", c.type, d.bytes()})) {
      printf("row_losses: the gradient of some classes differs, %s, case %d, %lld x %lld classes\n",
             table.isa, number, static_cast<long long>(c.rows), static_cast<long long>(c.classes));
      abort();
    }
  }
  const double total = kernels.sum_losses(loss.data, c.rows);
  const TargetCounts counts = kernels.count_targets(targets.data(), c.rows, c.classes - 1, -100);
  out.push_back({"sum_losses", "all", kDouble, {reinterpret_cast<const char*>(&total), sizeof(total)}});
  // Two counts below 2^31: as floats they are no NaNs.
  out.push_back({"count_targets", "all", kFloat, {reinterpret_cast<const char*>(&counts), sizeof(counts)}});
  return out;
}

}  // namespace

int main(int argc, char** argv) {
  const bool samples = argc > 1 && strcmp(argv[1], "sample") == 0;
  const int64_t longest = argc > 1 && !samples ? atoll(argv[1]) : 5000;
  const bool prints_hashes = argc > 2 && strcmp(argv[2], "hashes") == 0;
  const int64_t shortest = argc > 3 && strcmp(argv[2], "from") == 0 ? atoll(argv[3]) : 1;
  std::vector<const KernelTable*> tables;
  for (const Isa& isa : isas()) {
    if (isa.reason.empty() && isa.table->by_type[kFloat]->softmax.rows != nullptr)
      tables.push_back(isa.table);
  }
  const KernelTable& reference = *tables.back();  // portable, if it is there (without_portable.cpp)
  std::vector<Hashes> hashes(tables.size());
  long compared = 0, cases = 0;
  for (int type = 0; type < kElementTypes; ++type) {
    for (int64_t classes :
         {1, 2, 3, 4, 5, 7, 8, 9, 10, 15, 16, 17, 21, 31, 32, 33, 47, 64, 65, 127, 1000, 2049, 5000}) {
      if (classes < shortest || classes > longest) continue;
      // 144, 150: more rows of a slice than all blocks of lanes hold, with cache lines of a class that begin
      // where a vector does, and that don't.
      for (int64_t inner : {1, 3, 9, 23, 144, 150}) {
        if (inner > 23 && classes > 127) continue;
        for (int n = 0; n < 6; ++n) {
          // 32: the last block of lanes is whole and ends where the tensor ends.
          const int64_t side_by_side = classes > 500 ? 3 : n < 3 ? 37 : 32;
          const int64_t slices = inner == 1 ? side_by_side : classes > 500 || inner > 23 ? 1 : 3;
          const Case c{type, classes, inner, slices * inner, n % 2 == 1, static_cast<Case::Values>(n / 2)};
          // A case's numbers are its own, whichever cases are computed before it.
          state = mixed(static_cast<uint64_t>(((type * 8192 + classes) * 256 + inner) * 8 + n));
          const bool is_sample = in_sample(c, state);
          if (samples && !is_sample) continue;
          const size_t count = static_cast<size_t>(c.rows * classes), size = kSize[type];
          std::string logits(count * size, '\0'), others(count * size, '\0');
          for (size_t i = 0; i < count; ++i) {
            double v = (uniform() - 0.5) * (c.values == Case::kHurting ? 300 : 10);
            if (c.values == Case::kShifted) v += 5000;
            if (c.values == Case::kHurting && uniform() < 0.02) v = -INFINITY;
            if (c.values == Case::kHurting && uniform() < 0.003) v = NAN;
            put(&logits[i * size], type, v);
            put(&others[i * size], type, uniform());
          }
          std::vector<int64_t> targets(static_cast<size_t>(c.rows));
          for (int64_t& y : targets) {
            y = uniform() < 0.15 ? -100 : static_cast<int64_t>(uniform() * static_cast<double>(classes));
          }
          const Results expected = run(reference, c, kByRows, logits, others, targets);
          ++cases;
          for (size_t k = 0; k < kHows * tables.size(); ++k) {
            const KernelTable* table = tables[k / kHows];
            const How how = static_cast<How>(k % kHows);
            if (how == kShared && (inner != 1 || classes <= kChunkClasses)) continue;
            const Results found = run(*table, c, how, logits, others, targets);
            for (size_t i = 0; i < expected.size(); ++i) {
              if (same(expected[i], found[i])) continue;
              printf("%s and %s%s differ: type %d, %ld classes, inner %ld, values %d, result %zu, %s\n",
                     reference.isa, table->isa,
                     how == kShared     ? " in chunks"
                     : how == kStreamed ? " streamed"
                                        : "",
                     type, static_cast<long>(classes), static_cast<long>(inner), c.values, i,
                     found[i].op.c_str());
              return 1;
            }
            if (how != kStreamed) add(hashes[k / kHows], group_of(classes), found);
            if (how != kStreamed && is_sample) add(hashes[k / kHows], kSample, found);
            ++compared;
          }
        }
      }
    }
  }
  if (prints_hashes) {
    print(hashes[0]);
    return 0;
  }
  const auto is_complete = [&](int64_t group) {
    return group == kSample ? samples || longest >= 1000 : !samples && group <= longest;
  };
  bool equal = true;
  for (size_t k = 0; shortest == 1 && k < tables.size(); ++k) {
    const char* const isa = tables[k]->isa;
    equal &= same(hashes[k], kept, is_complete, isa) && same(kept, hashes[k], is_complete, isa);
  }
  if (!equal) return 1;
  printf("%ld cases, %ld runs, all bits equal%s:", cases, compared,
         shortest == 1 ? " and those of sweep.hashes" : "");
  for (const KernelTable* table : tables) printf(" %s", table->isa);
  printf("\n");
  return 0;
}
