package cri

import (
	"slices"

	"google.golang.org/protobuf/proto"
)

const (
	// maxBatchItems and maxBatchBytes bound one message of a streamed list,
	// well below the 16 MiB that kubelet accepts; one item alone may be larger.
	maxBatchItems = 512
	maxBatchBytes = 1 << 20
)

// inBatches sends every item exactly once, in order, in messages of a bounded
// size. It sends nothing if there are none.
func inBatches[M proto.Message](items []M, send func([]M) error) error {
	begin, size := 0, 0
	for i, item := range items {
		bytes := proto.Size(item)
		if i > begin && (i-begin == maxBatchItems || size+bytes > maxBatchBytes) {
			if err := send(slices.Clip(items[begin:i])); err != nil {
				return err
			}
			begin, size = i, 0
		}
		size += bytes
	}
	if begin == len(items) {
		return nil
	}
	return send(items[begin:])
}
