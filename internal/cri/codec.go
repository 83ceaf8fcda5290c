package cri

import (
	"log/slog"

	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // registers the codec
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/berth-runtime/berth/internal/text"
)

// replyCodec marshals replies. Protobuf refuses a message with a string that is not valid UTF-8, so
// one name from a container would fail the reply about all pods. Strings of foreign origin are
// cleaned where they are read; what was missed there is cleaned here.
type replyCodec struct {
	encoding.CodecV2

	log *slog.Logger
}

func newReplyCodec(log *slog.Logger) replyCodec {
	return replyCodec{CodecV2: encoding.GetCodecV2("proto"), log: log}
}

// Marshal implements [encoding.CodecV2].
func (c replyCodec) Marshal(v any) (mem.BufferSlice, error) {
	data, err := c.CodecV2.Marshal(v)
	reply, ok := v.(proto.Message)
	if err == nil || !ok {
		return data, err
	}
	reply = proto.Clone(reply) // views are shared
	cleanStrings(reply.ProtoReflect())
	data, again := c.CodecV2.Marshal(reply)
	if again != nil {
		return nil, err
	}
	c.log.Warn("reply had strings that are not valid UTF-8", "message", reply.ProtoReflect().Descriptor().Name(), "error", err)
	return data, nil
}

// cleanStrings makes every string of a message valid UTF-8.
func cleanStrings(m protoreflect.Message) {
	m.Range(func(field protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		switch {
		case field.IsMap():
			cleanMap(field, value.Map())
		case field.IsList():
			for i := range value.List().Len() {
				value.List().Set(i, cleanValue(field, value.List().Get(i)))
			}
		default:
			m.Set(field, cleanValue(field, value))
		}
		return true
	})
}

func cleanMap(field protoreflect.FieldDescriptor, entries protoreflect.Map) {
	entries.Range(func(key protoreflect.MapKey, value protoreflect.Value) bool {
		cleanKey := cleanValue(field.MapKey(), key.Value()).MapKey()
		if cleanKey.Interface() != key.Interface() {
			entries.Clear(key)
		}
		entries.Set(cleanKey, cleanValue(field.MapValue(), value))
		return true
	})
}

func cleanValue(field protoreflect.FieldDescriptor, value protoreflect.Value) protoreflect.Value {
	switch field.Kind() {
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(text.Clean(value.String()))
	case protoreflect.MessageKind:
		cleanStrings(value.Message())
	default:
	}
	return value
}
