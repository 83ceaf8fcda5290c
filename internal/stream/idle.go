package stream

import (
	"errors"
	"io"
	"sync"
	"time"
)

// errIdle is why a session ends on which nothing moved for too long.
var errIdle = errors.New("the session was idle for too long")

// idleWatch ends a session on which no data moves. What the protocols send by
// themselves to keep a connection open is no data.
type idleWatch struct {
	limit time.Duration
	end   func(cause error)

	mu    sync.Mutex
	timer *time.Timer
	last  time.Time
}

// watchIdle begins to watch. The owner calls stop.
func watchIdle(limit time.Duration, end func(cause error)) *idleWatch {
	w := &idleWatch{limit: limit, end: end, last: time.Now()}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.timer = time.AfterFunc(limit, w.check)
	return w
}

// check ends the session, or looks again when its time would be over.
func (w *idleWatch) check() {
	w.mu.Lock()
	left := w.limit - time.Since(w.last)
	if left > 0 {
		w.timer.Reset(left)
	}
	w.mu.Unlock()
	if left <= 0 {
		w.end(errIdle)
	}
}

// moved notes that there was data.
func (w *idleWatch) moved() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.last = time.Now()
}

func (w *idleWatch) stop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.timer.Stop()
}

// reader notes what is read from r.
func (w *idleWatch) reader(r io.Reader) io.Reader { return movingReader{r, w} }

// writer notes what is written to to.
func (w *idleWatch) writer(to io.Writer) io.Writer { return movingWriter{to, w} }

type movingReader struct {
	from  io.Reader
	watch *idleWatch
}

// Read implements [io.Reader].
func (m movingReader) Read(p []byte) (int, error) {
	n, err := m.from.Read(p)
	m.watch.moved()
	return n, err
}

type movingWriter struct {
	to    io.Writer
	watch *idleWatch
}

// Write implements [io.Writer].
func (m movingWriter) Write(p []byte) (int, error) {
	n, err := m.to.Write(p)
	m.watch.moved()
	return n, err
}
