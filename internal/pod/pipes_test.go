package pod

import (
	"bytes"
	"os"
	"testing"
	"time"
)

// lateWriter takes nothing until the read deadline of an output has passed.
type lateWriter struct {
	output *os.File
	got    bytes.Buffer
}

func (l *lateWriter) Write(p []byte) (int, error) {
	if err := l.output.SetReadDeadline(time.Unix(1, 0)); err != nil {
		return 0, err
	}
	return l.got.Write(p)
}

// What was written before the deadline is delivered after it, while a process still
// holds the output open.
func TestCopyOutputOutlivesItsDeadline(t *testing.T) {
	from, process, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer closeFiles(from, process)
	want := bytes.Repeat([]byte("0123456789abcdef"), 4<<10)
	if _, err := process.Write(want); err != nil {
		t.Fatal(err)
	}
	client := &lateWriter{output: from}
	if err := copyOutput(client, from); err != nil {
		t.Errorf("copyOutput: %v", err)
	}
	if !bytes.Equal(client.got.Bytes(), want) {
		t.Errorf("the client got %d bytes, want %d", client.got.Len(), len(want))
	}
}
