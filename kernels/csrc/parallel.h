// Threads and scratch memory. No std templates: code instantiated here may use AVX-512, and the
// linker would be free to keep that copy of a shared std template for processors without it.

namespace FASTVIM_LEVEL {

template <class Job>
static void run_job(void* job) {
  static_cast<Job*>(job)->run(openmp.thread_num(), openmp.num_threads());
}

// Calls job.run(thread, threads) on each thread; a job may get fewer threads than it asked for.
template <class Job>
static void parallel(int64_t threads, Job& job) {
  if (threads <= 1 || !openmp.parallel)
    job.run(0, 1);
  else
    openmp.parallel(run_job<Job>, &job, unsigned(threads), 0);
}

template <class Int>
INLINE Int least(Int a, Int b) {
  return a < b ? a : b;
}

template <class Int>
INLINE Int most(Int a, Int b) {
  return a > b ? a : b;
}

INLINE int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The size of at most `most_of_one` that cuts `total` most evenly; at least 1.
INLINE int64_t evenly(int64_t total, int64_t most_of_one) {
  return most<int64_t>(divide_up(total, most<int64_t>(divide_up(total, most_of_one), 1)), 1);
}

// How many blocks to cut the `parts` of each item into, so that no thread idles.
INLINE int64_t blocks_of_item(int64_t items, int64_t parts, int64_t threads) {
  int64_t blocks = 1;
  while (blocks < parts && items * blocks < 4 * threads && items * blocks % threads) ++blocks;
  return blocks;
}

// The share of `items` of one thread: contiguous and the same in every call, so that sums a
// thread accumulates are in a fixed order.
struct Share {
  int64_t begin, end;
  Share(int64_t items, int thread, int threads)
      : begin(items * thread / threads), end(items * (thread + 1) / threads) {}
  Share(int64_t b, int64_t e) : begin(b), end(e) {}
};

// One allocation, cut into vector-aligned arrays: `reserve` them all, `allocate`, then `take` them
// in the same order.
class Scratch {
 public:
  template <class Element>
  void reserve(int64_t count) {
    size_ += padded<Element>(count);
  }
  int64_t size() const { return size_ + 64; }
  bool allocate() {
    next_ = nullptr;
    if (posix_memalign(reinterpret_cast<void**>(&memory_), 64, size_t(size()))) {
      memory_ = nullptr;
      return false;
    }
    next_ = memory_;
    return true;
  }
  // Instead of allocating: `size()` bytes of the caller's.
  void use(void* memory) {
    next_ = static_cast<char*>(memory) + (64 - reinterpret_cast<uintptr_t>(memory) % 64) % 64;
  }
  template <class Element>
  Element* take(int64_t count) {
    char* here = next_;
    next_ += padded<Element>(count);
    return reinterpret_cast<Element*>(here);
  }
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { free(memory_); }

 private:
  template <class Element>
  static int64_t padded(int64_t count) {
    return (count * int64_t(sizeof(Element)) + 63) / 64 * 64;
  }
  int64_t size_ = 0;
  char *memory_ = nullptr, *next_ = nullptr;
};

}  // namespace FASTVIM_LEVEL
