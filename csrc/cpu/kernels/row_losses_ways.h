// SPDX-License-Identifier: Apache-2.0
// Losses and statistics of whole rows with softkern's own options, and their gradient: one kernel for the
// forward and the backward. The logits of a row are transformed into memory of the thread, unless the kernel
// can read them as they are.
#pragma once

#include "row_losses_memory.h"

namespace softkern::cpu {
namespace {

/// Computes the numbers of a row's gradient, of which all but the last are computed once a row. A division
/// for each of several hot classes would take longer than the rest.
struct OfRow : OneLane<double> {
  static SK_INLINE double divisor(double b) { return 1 / b; }
  static SK_INLINE double over(double a, double divisor) { return a * divisor; }
};

template <class T, bool kSpread>
class RowLosses {
  using A = Compute<T>;
  using S = Simd<A>;
  using L = OneLane<A>;
  using D = OfRow;
  using Results = RowResults<T>;

 public:
  RowLosses(const RowLossArgs& a, const Range& range)
      : a_(a),
        arena_(range.scratch),
        rows_(a, range, arena_),
        logits_(logit_numbers<A>(a.options)),
        results_(a),
        mass_{results_.weight() == nullptr ? nullptr : results_.weight() + a.first, nullptr, nullptr,
              results_.mass_numbers_of()} {
    if (rows_.hot != nullptr) {
      __builtin_memset(rows_.hot, 0, static_cast<size_t>(a.valid) * sizeof(double));
    }
  }

  void run(const Range& range) {
    for_each_tile<T>(a_.shape, range, [&](int64_t first, int64_t count) {
      rows_.logits.stage(first, count);
      rows_.probabilities.stage(first, count);
      const auto gradient_row = [&](int64_t r) {
        return rows_.differentiates ? rows_.grad.row(r, first) : nullptr;
      };
      const auto begin = [&](int64_t r) __attribute__((always_inline)) {
        Begun row{};
        row.ignored = results_.is_ignored(r);
        if (row.ignored) return row;
        row.mass = mass_;
        if (a_.probabilities.data != nullptr) {
          row.mass.probability = rows_.probabilities.row(r, first);
          row.mass.next = rows_.probabilities.next(r, range.end);
        }
        begin_row(r, rows_.logits.row(r, first), rows_.logits.next(r, range.end), gradient_row(r), row);
        return row;
      };
      const auto finish = [&](int64_t r, const Begun& row) __attribute__((always_inline)) {
        T* const dx = gradient_row(r);
        // Also before an ignored row: the slots of waiting rows must not be taken by rows that begin.
        if (waiting_ > 0 && r - waiting_row_[0] >= kResultRows) put_all_results();
        if (row.ignored) {
          put_nothing(r, dx);
          return;
        }
        RowNumbers<A> of = row.of;
        if (pulls_lse()) Results::set_log(of, of.stats.log_d());
        if (a_.whole == nullptr) {
          put_parts(r, of);
          put_largest(r, of, row.z);
          add_results(r, of);
        }
        if (dx != nullptr) write(r, row.mass, of, rows_.terms(r, dx), row.z, dx);
      };
      for_each_row(first, count, rows_.lag, begin, finish);
      rows_.grad.flush(first, count);
    });
    put_all_results();
  }

 private:
  struct Begun {
    RowNumbers<A> of;
    AnyMass<T> mass;
    const A* z;
    bool ignored;
  };

  static const A* numbers(const void* x) { return static_cast<const A*>(x); }
  /// An optional number of row r.
  static double number(const void* x, int64_t r, double otherwise) {
    return x == nullptr ? otherwise : static_cast<double>(numbers(x)[r]);
  }
  /// The class of index k among the logits; -1 if it is not among them.
  int64_t own_class(int64_t r, int64_t k) const {
    const int64_t c = results_.indices(r)[k] - a_.first;
    return c >= 0 && c < a_.valid ? c : -1;
  }
  A whole(int64_t number, int64_t r) const { return numbers(a_.whole)[number * a_.whole_step + r]; }
  /// Ignored rows get exact zeros, whatever their logits.
  void put_nothing(int64_t r, T* dx) const {
    results_.put_ignored(r);
    if (a_.argmax != nullptr) a_.argmax[r] = -1;
    if (a_.correct != nullptr) a_.correct[r] = false;
    for (int64_t i = 0; i < kPartNumbers; ++i) put_part(r, i, 0);
    for (int64_t k = 0; k < a_.per_row; ++k) Results::put(a_.hot_z, r * a_.per_row + k, 0);
    if (dx != nullptr) zero_row(dx, a_.shape.classes);
  }

  SK_INLINE void begin_row(int64_t r, const T* x, const T* next, T* dx, Begun& row) {
    const int64_t n = a_.valid;
    RowRange<A> range;
    if (rows_.transforms) {
      row.z = rows_.z(r);
      range = transform_row(logits_, x, rows_.z(r), n);  // 1 max
    } else {
      row.z = compute_row(const_cast<T*>(x), static_cast<A*>(nullptr));
      range = x == known_ ? range_ : row_range<A>(x, n);
    }
    for (int64_t k = 0; k < a_.per_row; ++k) {
      const int64_t c = own_class(r, k);
      rows_.hot_z(r)[k] = c < 0 ? A(0) : row.z[c];
    }
    if (a_.whole != nullptr) {
      begin_part(r, range, next, dx, row);
      return;
    }
    if constexpr (kSpread) {
      BlockSums<A, 2> sums;
      sum_mass<A>(row.z, range.most, row.mass, 0, n,
                  [&](const Accumulators<A>* part) __attribute__((always_inline)) { sums.add(part); });
      row.of.mass = sums.sums();
    }
    A* const e = rows_.terms(r, dx);
    const RowSums sums =
        rows_.sums_below ? sum_terms<true>(range, row.z, e, next) : sum_terms<false>(range, row.z, e, next);
    row.of.stats = make_stats<A>(range.most, sums.ties, sums.rest);
    row.of.below = sums.below;
  }

  /// As begin_row, for the gradient of some classes of a row whose numbers are known.
  SK_INLINE void begin_part(int64_t r, RowRange<A> range, const T* next, T* dx, Begun& row) {
    // The z of the class index is the one that the numbers were computed with: another product of matrices
    // may have rounded it differently, and p - 1 would lose its digits.
    if (results_.has_one_index()) *rows_.hot_z(r) = whole(kPartHotZ, r);
    range.most = whole(kPartMax, r);
    sum_terms<false>(range, row.z, rows_.terms(r, dx), next);
    row.of.stats = make_stats<A>(range.most, whole(kPartTies, r), whole(kPartRest, r));
    row.of.below = whole(kPartTermsBelow, r);
    row.of.mass.of[0] = whole(kPartMass, r);
  }

  struct RowSums {
    A ties, rest, below;
  };
  /// 2 sum-exp; kBelow: also E.
  template <bool kBelow>
  SK_CALL RowSums sum_terms(const RowRange<A>& range, const A* z, A* e, const T* next) {
    BlockSums<A, kBelow ? 2 : 1> sums;
    const auto take = [&](const Accumulators<A>* part) __attribute__((always_inline)) { sums.add(part); };
    A ties;
    known_ = rows_.lag && !rows_.transforms ? next : nullptr;
    if (known_ != nullptr) {
      Following<T> following(next + kAhead, next);
      ties = sum_exp_within<A, kBelow>(range, z, e, a_.valid, following, take);
      range_ = following.range();
    } else {
      Prefetching<T> following(next);
      ties = sum_exp_within<A, kBelow>(range, z, e, a_.valid, following, take);
    }
    const auto all = sums.sums();
    return {ties, all.of[0], kBelow ? all.of[kBelow ? 1 : 0] : A(0)};
  }

  void put_part(int64_t r, int64_t number, A v) const {
    Results::put(a_.parts, number * a_.parts_step + r, v);
  }

  SK_INLINE void put_parts(int64_t r, const RowNumbers<A>& of) const {
    if (a_.parts == nullptr) return;
    put_part(r, kPartMax, of.stats.m);
    put_part(r, kPartTies, of.stats.ties);
    put_part(r, kPartRest, of.stats.rest);
    // Of masked classes alone E would be NaN, in the other classes' sum, too.
    put_part(r, kPartTermsBelow, of.stats.m == -__builtin_inf() ? A(0) : of.below);
    put_part(r, kPartMass, kSpread ? of.mass.of[0] : A(0));
    put_part(r, kPartMassBelow, kSpread ? of.mass.of[1] : A(0));
    put_part(r, kPartHotZ, results_.has_one_index() ? *rows_.hot_z(r) : A(0));
    for (int64_t k = 0; k < a_.per_row; ++k) Results::put(a_.hot_z, r * a_.per_row + k, rows_.hot_z(r)[k]);
  }

  SK_INLINE void put_largest(int64_t r, const RowNumbers<A>& of, const A* z) const {
    if (a_.argmax == nullptr && a_.correct == nullptr) return;
    const bool is_number = of.stats.sum() == of.stats.sum();
    int64_t found = is_number ? -1 : first_nan(z, a_.valid);
    if (found < 0) found = first_equal(z, a_.valid, of.stats.m);
    if (a_.argmax != nullptr) a_.argmax[r] = found;
    if (a_.correct != nullptr) a_.correct[r] = found == *results_.indices(r);
  }

  /// Whether the gradient depends on lse.
  bool pulls_lse() const { return rows_.differentiates && results_.zeta() != 0; }
  SK_INLINE void add_results(int64_t r, const RowNumbers<A>& of) {
    if (!results_.wanted()) return;
    if (pulls_lse()) {
      results_.put_row(r, of, rows_.hot_z(r));
      return;
    }
    waiting_row_[waiting_] = r;
    waiting_of_[waiting_++] = of;
  }
  SK_CALL void put_all_results() {
    results_.put_rows(
        waiting_, waiting_of_, [&](int k) { return waiting_row_[k]; },
        [&](int k) { return rows_.hot_z(waiting_row_[k]); });
    waiting_ = 0;
  }

  /// The numbers of a row's gradient, in double: they are computed once a row.
  struct Pull {
    double g, of_entropy, rest, hot, divisor;
  };

  SK_INLINE void write(int64_t r, const AnyMass<T>& mass, const RowNumbers<A>& of, A* e, const A* z, T* dx) {
    const int64_t n = a_.valid;
    Pull p;
    p.g = a_.grad_factor * number(a_.of_loss, r, 1) * number(a_.row_weight, r, 1);
    p.of_entropy = number(a_.of_entropy, r, 0);
    p.divisor = D::divisor(softkern::total<D>(of.stats.ties, of.stats.top, of.stats.rest));
    const double mean_below = D::over(of.below, p.divisor);
    p.rest = common_pull<D>(p.g, of.mass.of[0], results_.zeta(), results_.own_weight(r), of.lse,
                            number(a_.of_lse, r, 0)) -
             p.of_entropy * mean_below;
    p.hot = 0;
    for (int64_t k = 0; k < a_.per_row; ++k) {
      const double part = hot_part(r, k, p);
      p.hot += part;
      if (rows_.hot != nullptr && own_class(r, k) >= 0) rows_.hot[own_class(r, k)] += part;
    }
    const double slope = logits_.capped ? 1 : static_cast<double>(logits_.slope);
    const RowPull<A> pull{static_cast<A>(D::over(slope * (p.hot + p.rest), p.divisor)),
                          static_cast<A>(D::over(slope * p.of_entropy, p.divisor)),
                          static_cast<A>(-slope * p.g)};
    const bool stream = rows_.grad.streamed();
    if (a_.per_row <= 1) {
      const int64_t hot = a_.per_row == 1 ? own_class(r, 0) : -1;
      const A hot_grad = hot < 0 ? A(0) : hot_gradient_of(mass, of, p, p.hot, hot, e[hot], *rows_.hot_z(r));
      write_to(dx, pull, mass, of, e, z, hot, hot_grad, stream);
    } else {
      for (int64_t k = 0; k < a_.per_row; ++k) {
        const int64_t c = own_class(r, k);
        if (c >= 0)
          rows_.hot_grad[k] = hot_gradient_of(mass, of, p, rows_.hot[c], c, e[c], rows_.hot_z(r)[k]);
      }
      for (int64_t k = 0; k < a_.per_row; ++k) {
        if (own_class(r, k) >= 0) rows_.hot[own_class(r, k)] = 0;
      }
      if (stream) {
        // Classes that are stored after their vectors have been written past the caches would wait until
        // their cache lines are loaded again. So the row is completed in memory of the thread.
        write_to(e, pull, mass, of, e, z, -1, A(0), false);
        put_hot(e, r);
        stream_valid<A>(dx, n, a_.shape.classes,
                        [&](auto to, int64_t i) __attribute__((always_inline)) { return to.load(e + i, 0); });
      } else {
        write_to(dx, pull, mass, of, e, z, -1, A(0), false);
        put_hot(dx, r);
      }
    }
    if (!stream && n < a_.shape.classes) zero_row(dx + n, a_.shape.classes - n);
  }

  template <class Out>
  SK_INLINE void write_to(Out* grad, const RowPull<A>& pull, const AnyMass<T>& mass, const RowNumbers<A>& of,
                          const A* e, const A* z, int64_t hot, A hot_grad, bool stream) const {
    if (logits_.capped || a_.of_entropy != nullptr) {
      row_losses_write<kSpread, true>(pull, logits_, mass, e, z, of.stats.m, grad, a_.valid, a_.shape.classes,
                                      hot, hot_grad, stream);  // 3 write
    } else {
      row_losses_write<kSpread, false>(pull, logits_, mass, e, z, of.stats.m, grad, a_.valid,
                                       a_.shape.classes, hot, hot_grad, stream);
    }
  }
  template <class Out>
  void put_hot(Out* grad, int64_t r) const {
    for (int64_t k = 0; k < a_.per_row; ++k) {
      if (own_class(r, k) >= 0) grad[own_class(r, k)] = Narrow<Out>::from(rows_.hot_grad[k]);
    }
  }

  /// h of index k.
  double hot_part(int64_t r, int64_t k, const Pull& p) const {
    return p.g * static_cast<double>(results_.mass_of(r, k)) - number(a_.of_log_prob, r * a_.per_row + k, 0);
  }
  /// The gradient of a class y with the hot part h.
  A hot_gradient_of(const AnyMass<T>& mass, const RowNumbers<A>& of, const Pull& p, double h, int64_t y, A e,
                    A z) const {
    const double below = static_cast<double>(of.stats.m) - static_cast<double>(z);
    // A logit of -inf has no term, and 0 * inf would be NaN.
    const double others = p.rest + (p.hot - h) + (e == 0 ? 0 : p.of_entropy * below);
    double dz = hot_gradient<D>(1, h, others, z, e, of.stats.m, of.stats.ties, of.stats.rest, p.divisor);
    if constexpr (kSpread) {
      A lanes[S::kLanes];
      S::store(lanes, mass.load(Tail<A>{1}, y));
      dz -= p.g * static_cast<double>(lanes[0]);
    }
    return static_cast<A>(dz * static_cast<double>(logit_slope<L>(logits_, z)));
  }

  const RowLossArgs& a_;
  Arena arena_;
  RowLossRows<T> rows_;
  const LogitNumbers<A> logits_;
  const Results results_;
  const AnyMass<T> mass_;
  // As in RowWalk: the range of the next row, if rows lag and it is read as it is.
  static constexpr int64_t kAhead = 4096 / sizeof(T);
  const T* known_ = nullptr;
  RowRange<A> range_ = {0, 0};
  // The rows whose results wait for their logarithm.
  int waiting_ = 0;
  int64_t waiting_row_[kResultRows];
  RowNumbers<A> waiting_of_[kResultRows];
};

template <class T>
Ran row_losses(const RowLossArgs& a, Range range) {
  if (RowResults<T>::has_spread_row(a)) {
    RowLosses<T, true>(a, range).run(range);
  } else {
    RowLosses<T, false>(a, range).run(range);
  }
  return {SOFTKERN_ISA, is_strided(a.logits) || is_strided(a.grad) ? "tiles" : "rows"};
}

template <class T>
size_t row_losses_scratch(const RowLossArgs& a, int64_t rows) {
  Arena arena;
  RowLossRows<T>(a, Range{0, rows, nullptr}, arena);
  return arena.bytes();
}

template <class T>
constexpr Kernel<RowLossArgs> row_losses_kernel() {
  return {&fenced<RowLossArgs, &row_losses<T>>, &row_losses_scratch<T>};
}

}  // namespace
}  // namespace softkern::cpu
