package bench

import (
	"os"
	"testing"

	"github.com/berth-runtime/berth/test/harness"
)

// logBytes is what the container of BenchmarkLog writes.
const logBytes = 100 << 20

// BenchmarkLog lets a container write lines as fast as it can and tells how
// many bytes of them reach the log per second.
func BenchmarkLog(b *testing.B) {
	n := harness.Start(b, harness.Options{})
	pod := n.RunPod()
	b.SetBytes(logBytes)
	for b.Loop() {
		c := pod.Start([]string{"sh", "-c", "yes 0123456789012345678901234567890123456789012345678901234567890123456789 | head -c 104857600"})
		c.Exited()
		if info, err := os.Stat(c.LogFile()); err != nil || info.Size() < logBytes {
			b.Fatalf("log: %v, %v", info, err)
		}
		c.Remove()
		if err := os.Remove(c.LogFile()); err != nil {
			b.Fatal(err)
		}
	}
}
