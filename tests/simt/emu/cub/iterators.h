// CCCL's counting and transforming iterators.
#ifndef SIMT_EMU_ITERATORS_H
#define SIMT_EMU_ITERATORS_H

#include <stddef.h>

#include <iterator>
#include <type_traits>
#include <utility>

namespace simt {

// Random access over a function of the position's value.
template <class Self, class Value>
class IteratorFacade {
 public:
  using iterator_category = std::random_access_iterator_tag;
  using value_type = std::decay_t<Value>;
  using difference_type = ptrdiff_t;
  using reference = Value;
  using pointer = void;

  Self& operator++() { return self() += 1; }
  Self& operator--() { return self() += -1; }
  Self operator++(int) {
    Self old = self();
    self() += 1;
    return old;
  }
  Self& operator-=(difference_type n) { return self() += -n; }
  template <class Integer>
  Value operator[](Integer n) const {
    Self moved = self();
    moved += static_cast<difference_type>(n);
    return *moved;
  }
  friend Self operator+(Self it, difference_type n) { return it += n; }
  friend Self operator+(difference_type n, Self it) { return it += n; }
  friend Self operator-(Self it, difference_type n) { return it += -n; }
  friend bool operator==(const Self& a, const Self& b) { return a - b == 0; }
  friend bool operator!=(const Self& a, const Self& b) { return a - b != 0; }

 private:
  Self& self() { return static_cast<Self&>(*this); }
  const Self& self() const { return static_cast<const Self&>(*this); }
};

template <class T>
class CountingIterator : public IteratorFacade<CountingIterator<T>, T> {
 public:
  CountingIterator() = default;
  explicit CountingIterator(T value) : value_(value) {}
  T operator*() const { return value_; }
  CountingIterator& operator+=(ptrdiff_t n) {
    value_ = static_cast<T>(value_ + static_cast<T>(n));
    return *this;
  }
  friend ptrdiff_t operator-(const CountingIterator& a, const CountingIterator& b) {
    return static_cast<ptrdiff_t>(a.value_) - static_cast<ptrdiff_t>(b.value_);
  }

 private:
  T value_{};
};

template <class F, class Iterator>
class TransformIterator
    : public IteratorFacade<TransformIterator<F, Iterator>,
                            decltype(std::declval<F>()(*std::declval<Iterator>()))> {
 public:
  TransformIterator(Iterator it, F f) : it_(it), f_(f) {}
  auto operator*() const -> decltype(std::declval<F>()(*std::declval<Iterator>())) {
    return f_(*it_);
  }
  TransformIterator& operator+=(ptrdiff_t n) {
    it_ += n;
    return *this;
  }
  friend ptrdiff_t operator-(const TransformIterator& a, const TransformIterator& b) {
    return a.it_ - b.it_;
  }

 private:
  Iterator it_;
  F f_;
};

}  // namespace simt

namespace thrust {
template <class T>
using counting_iterator = simt::CountingIterator<T>;
template <class T>
counting_iterator<T> make_counting_iterator(T value) {
  return counting_iterator<T>(value);
}
template <class F, class Iterator>
using transform_iterator = simt::TransformIterator<F, Iterator>;
template <class F, class Iterator>
transform_iterator<F, Iterator> make_transform_iterator(Iterator it, F f) {
  return transform_iterator<F, Iterator>(it, f);
}
}  // namespace thrust

namespace cuda {
template <class T>
using counting_iterator = simt::CountingIterator<T>;
template <class F, class Iterator>
using transform_iterator = simt::TransformIterator<F, Iterator>;
}  // namespace cuda

namespace cub {
template <class T, class Offset = ptrdiff_t>
using CountingInputIterator = simt::CountingIterator<T>;
}  // namespace cub

#endif
