// The least and the greatest number and the norm of many tensors, in one pass over each.

namespace FASTVIM_LEVEL {

template <class T>
struct Magnitudes {
  // Elements whose squares are added in T, before the sum goes on in double. Pieces are what threads
  // share out, so their number changes no bit.
  static constexpr int64_t kPiece = 1 << 14;

  struct Piece {
    T low, high;
    double squares;
  };

  const MagnitudesCall& call;
  int64_t pieces = 0;
  Scratch scratch;
  Piece* found = nullptr;

  explicit Magnitudes(const MagnitudesCall& c) : call(c) {
    for (int64_t i = 0; i < call.tensors; ++i) pieces += divide_up(call.sizes[i], kPiece);
  }

  int execute() {
    scratch.reserve<Piece>(pieces);
    if (!scratch.allocate()) return kNoMemory;
    found = scratch.take<Piece>(pieces);
    parallel(call.threads, *this);
    const Piece* piece = found;
    for (int64_t i = 0; i < call.tensors; ++i) {
      Piece whole = *piece++;
      for (int64_t more = divide_up(call.sizes[i], kPiece) - 1; more > 0; --more) add(whole, *piece++);
      // Comparisons lose a NaN, sums do not.
      const bool lost = whole.squares != whole.squares;
      T* y = static_cast<T*>(call.y) + 3 * i;
      y[0] = lost ? T(whole.squares) : whole.low;
      y[1] = lost ? T(whole.squares) : whole.high;
      y[2] = T(sqrt(whole.squares));
    }
    return kDone;
  }

  void run(int thread, int threads) {
    const Share share(pieces, thread, threads);
    int64_t first = 0;  // piece of tensor i
    for (int64_t i = 0; i < call.tensors && first < share.end; ++i) {
      const int64_t size = call.sizes[i], count = divide_up(size, kPiece);
      const int64_t end = least(share.end - first, count);
      for (int64_t p = most<int64_t>(share.begin - first, 0); p < end; ++p)
        found[first + p] = look(static_cast<const T*>(call.x[i]) + p * kPiece,
                                least(size - p * kPiece, kPiece));
      first += count;
    }
  }

  static Piece look(const T* x, int64_t size) {
    Piece piece{x[0], x[0], 0};
    Vec<T> low = splat(x[0]), high = low;
    const auto square = [&](int64_t i) {
      const Vec<T> value = load(x + i * kLanes<T>);
      low = value < low ? value : low;
      high = value > high ? value : high;
      return value * value;
    };
    const int64_t whole = size / kLanes<T>;
    piece.squares = sum<T>(sum_of<T>(whole, square));
    for (int lane = 0; lane < kLanes<T>; ++lane) add(piece, {low[lane], high[lane], 0});
    for (int64_t i = whole * kLanes<T>; i < size; ++i) add(piece, {x[i], x[i], double(x[i] * x[i])});
    return piece;
  }

  static void add(Piece& to, const Piece& other) {
    to.low = least(to.low, other.low);
    to.high = most(to.high, other.high);
    to.squares += other.squares;
  }
};

template <class T>
static int magnitudes(const MagnitudesCall& call) {
  return Magnitudes<T>(call).execute();
}

}  // namespace FASTVIM_LEVEL
