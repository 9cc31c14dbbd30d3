/* The gated recurrence and its gradient: see scan.py for the equations.
 *
 * Compiled for the machine at hand, once with REAL = float and once with REAL = double.
 * Shapes: B batch, T time, D width; every array is dense but for z, whose rows may lie apart.
 * The rows of a batch do not depend on each other, so each thread takes some of them through all
 * of T and threads never wait for each other within the sequence.
 */
#include <pthread.h>
#include <stddef.h>
#include <tgmath.h>

#define MIX ((REAL)0.1)
#define DECAY_BOUND ((REAL)1.2)
#define MAX_THREADS 256

typedef ptrdiff_t size;

typedef struct {
  size batch, time, width, z_batch_stride, z_time_stride;
  /* Tokens that share the gates' view of h, and how many of the first such chunk came before. */
  size gate_chunk, gate_position;
  const REAL *z, *gamma, *gate_z, *bias;
  /* [D, 2D] for the forward pass, [2D, D] for the backward pass. */
  const REAL *weight;
  /* The state before the first token, and the state that its gates see. */
  const REAL *h_first, *h_gate;
  REAL *h, *gates;
  const REAL *grad_h;
  REAL *grad_z, *grad_gamma, *grad_gates, *grad_h_first, *grad_h_gate;
  /* [B, 2D]: what the gates get from h, or the sum of their gradients over one chunk. */
  REAL *buffer;
} Scan;

/* out[r][n] += sum over k of x[r][k] * w[k][n], for R rows and N columns at a time: so small that
 * the sums stay in registers. */
#define DEFINE_TILE(R, N)                                                                     \
  static inline void tile_##R##_##N(size depth, const REAL *restrict x, size x_row,           \
                                    const REAL *restrict w, size w_row, REAL *restrict out,   \
                                    size out_row) {                                           \
    REAL sum[R][N];                                                                           \
    for (int r = 0; r < R; r++)                                                               \
      for (int n = 0; n < N; n++) sum[r][n] = out[r * out_row + n];                           \
    for (size k = 0; k < depth; k++)                                                          \
      for (int r = 0; r < R; r++)                                                             \
        for (int n = 0; n < N; n++) sum[r][n] += x[r * x_row + k] * w[k * w_row + n];         \
    for (int r = 0; r < R; r++)                                                               \
      for (int n = 0; n < N; n++) out[r * out_row + n] = sum[r][n];                           \
  }
DEFINE_TILE(4, 64)
DEFINE_TILE(4, 16)
DEFINE_TILE(4, 1)
DEFINE_TILE(1, 128)
DEFINE_TILE(1, 16)
DEFINE_TILE(1, 1)

#define COLUMNS(R, N)                                                                         \
  for (; n + N <= columns; n += N)                                                            \
    tile_##R##_##N(depth, x + r * x_row, x_row, w + n, columns, out + r * out_row + n, out_row);

static void add_product(size rows, size depth, size columns, const REAL *x, size x_row,
                        const REAL *w, REAL *out, size out_row) {
  size r = 0;
  for (; r + 4 <= rows; r += 4) {
    size n = 0;
    COLUMNS(4, 64)
    COLUMNS(4, 16)
    COLUMNS(4, 1)
  }
  for (; r < rows; r++) {
    size n = 0;
    COLUMNS(1, 128)
    COLUMNS(1, 16)
    COLUMNS(1, 1)
  }
}

/* The exponential never overflows: an infinity would become NaN in a fast division. */
static inline REAL sigmoid(REAL x) {
  const REAL e = exp(-fabs(x)), r = 1 / (1 + e);
  return x >= 0 ? r : e * r;
}

static inline REAL decay(REAL gamma, REAL g) {
  return ((1 + MIX) * gamma + MIX * (1 - g)) * (1 / DECAY_BOUND);
}

/* One token; a function of its own so that `restrict` holds and the loop becomes vector code. */
static void step(size D, const REAL *restrict z, const REAL *restrict gamma,
                 const REAL *restrict gate_z, const REAL *restrict s_from_h,
                 const REAL *restrict g_from_h, const REAL *restrict h_before,
                 REAL *restrict gate_s, REAL *restrict gate_g, REAL *restrict h) {
  for (size d = 0; d < D; d++) {
    const REAL s = sigmoid(s_from_h[d]), g = sigmoid(g_from_h[d] + gate_z[d]);
    gate_s[d] = s;
    gate_g[d] = g;
    h[d] = decay(gamma[d], g) * h_before[d] + (s + MIX * g) * z[d];
  }
}

static void forward(const Scan *scan, size first, size rows) {
  const size T = scan->time, D = scan->width;
  REAL *from_h = scan->buffer + first * 2 * D;
  for (size t = 0; t < T; t++) {
    const REAL *before = t ? scan->h + (first * T + t - 1) * D : scan->h_first + first * D;
    const size before_row = t ? T * D : D;
    if (t == 0 || (t + scan->gate_position) % scan->gate_chunk == 0) {
      for (size r = 0; r < rows; r++)
        for (size d = 0; d < 2 * D; d++) from_h[r * 2 * D + d] = scan->bias[d];
      add_product(rows, D, 2 * D, t ? before : scan->h_gate + first * D, before_row, scan->weight,
                  from_h, 2 * D);
    }
    for (size r = 0; r < rows; r++) {
      const size row = (first + r) * T + t;
      const REAL *from_h_r = from_h + r * 2 * D;
      REAL *gates = scan->gates + row * 2 * D;
      step(D, scan->z + (first + r) * scan->z_batch_stride + t * scan->z_time_stride,
           scan->gamma + row * D, scan->gate_z + row * D, from_h_r, from_h_r + D,
           before + r * before_row, gates, gates + D, scan->h + row * D);
    }
  }
}

/* One token's gradients; `back` comes from the token after and goes to the token before. */
static void step_back(size D, const REAL *restrict z, const REAL *restrict gamma,
                      const REAL *restrict h_before, const REAL *restrict gate_s,
                      const REAL *restrict gate_g, const REAL *restrict grad_h,
                      REAL *restrict back, REAL *restrict grad_z, REAL *restrict grad_gamma,
                      REAL *restrict grad_s, REAL *restrict grad_g, REAL *restrict sum_s,
                      REAL *restrict sum_g) {
  for (size d = 0; d < D; d++) {
    const REAL s = gate_s[d], g = gate_g[d], grad = grad_h[d] + back[d];
    const REAL to_s = grad * z[d] * s * (1 - s);
    const REAL to_g = grad * MIX * (z[d] - h_before[d] * (1 / DECAY_BOUND)) * g * (1 - g);
    grad_z[d] = grad * (s + MIX * g);
    grad_gamma[d] = grad * h_before[d] * ((1 + MIX) / DECAY_BOUND);
    grad_s[d] = to_s;
    grad_g[d] = to_g;
    sum_s[d] += to_s;
    sum_g[d] += to_g;
    back[d] = grad * decay(gamma[d], g);
  }
}

/* grad_h_first holds the gradient that flows back from the step after; it starts at 0. */
static void backward(const Scan *scan, size first, size rows) {
  const size T = scan->time, D = scan->width;
  REAL *gates_sum = scan->buffer + first * 2 * D, *carry = scan->grad_h_first + first * D;
  REAL *to_gate = scan->grad_h_gate + first * D;
  for (size i = 0; i < rows * D; i++) carry[i] = to_gate[i] = 0;
  for (size i = 0; i < rows * 2 * D; i++) gates_sum[i] = 0;
  for (size t = T - 1; t >= 0; t--) {
    for (size r = 0; r < rows; r++) {
      const size row = (first + r) * T + t;
      const REAL *gates = scan->gates + row * 2 * D;
      REAL *grad_gates = scan->grad_gates + row * 2 * D, *sum = gates_sum + r * 2 * D;
      step_back(D, scan->z + (first + r) * scan->z_batch_stride + t * scan->z_time_stride,
                scan->gamma + row * D,
                t ? scan->h + (row - 1) * D : scan->h_first + (first + r) * D, gates, gates + D,
                scan->grad_h + row * D, carry + r * D, scan->grad_z + row * D,
                scan->grad_gamma + row * D, grad_gates, grad_gates + D, sum, sum + D);
    }
    if (t == 0 || (t + scan->gate_position) % scan->gate_chunk == 0) {
      add_product(rows, 2 * D, D, gates_sum, 2 * D, scan->weight, t ? carry : to_gate, D);
      for (size i = 0; i < rows * 2 * D; i++) gates_sum[i] = 0;
    }
  }
}

typedef struct {
  const Scan *scan;
  void (*pass)(const Scan *, size, size);
  size first, rows;
} Share;

static void *run_share(void *argument) {
  const Share *share = argument;
  share->pass(share->scan, share->first, share->rows);
  return 0;
}

/* Threads live for one call only, so that none is there when the process forks. */
static void run(const Scan *scan, void (*pass)(const Scan *, size, size), size num_threads) {
  Share shares[MAX_THREADS];
  pthread_t threads[MAX_THREADS];
  int started[MAX_THREADS] = {0};
  if (num_threads > MAX_THREADS) num_threads = MAX_THREADS;
  if (num_threads > scan->batch) num_threads = scan->batch;
  for (size i = 0; i < num_threads; i++) {
    const size first = scan->batch * i / num_threads;
    const size end = scan->batch * (i + 1) / num_threads;
    shares[i] = (Share){scan, pass, first, end - first};
  }
  for (size i = 1; i < num_threads; i++)
    started[i] = pthread_create(&threads[i], 0, run_share, &shares[i]) == 0;
  for (size i = 0; i < num_threads; i++)
    if (!started[i]) run_share(&shares[i]);
  for (size i = 1; i < num_threads; i++)
    if (started[i]) pthread_join(threads[i], 0);
}

void scan_forward(const Scan *scan, size num_threads) { run(scan, forward, num_threads); }

void scan_backward(const Scan *scan, size num_threads) { run(scan, backward, num_threads); }
