package fuzz

import (
	"math/rand/v2"

	"google.golang.org/protobuf/reflect/protoreflect"
)

// recipe says what fills the fields of a message.
type recipe struct {
	depth  int // how deep messages are filled; -1 leaves the message empty
	text   string
	number int64
	// ids are the texts of ID fields, by field name.
	ids map[protoreflect.Name]string
}

// fill sets every field down to the recipe's depth.
func (r recipe) fill(m protoreflect.Message) {
	r.fillTo(m, r.depth)
}

func (r recipe) fillTo(m protoreflect.Message, depth int) {
	if depth < 0 {
		return
	}
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		switch {
		case f.IsMap():
			r.fillMap(m, f)
		case f.Kind() == protoreflect.MessageKind && depth == 0:
		case f.Kind() == protoreflect.MessageKind && f.IsList():
			r.fillTo(m.Mutable(f).List().AppendMutable().Message(), depth-1)
		case f.Kind() == protoreflect.MessageKind:
			r.fillTo(m.Mutable(f).Message(), depth-1)
		case f.IsList():
			m.Mutable(f).List().Append(r.value(f))
		default:
			m.Set(f, r.value(f))
		}
	}
}

// change sets one field of a message, or of a message in it.
func (r recipe) change(m protoreflect.Message, rng *rand.Rand) {
	fields := m.Descriptor().Fields()
	if fields.Len() == 0 {
		return
	}
	f := fields.Get(rng.IntN(fields.Len()))
	switch {
	case f.IsMap():
		r.fillMap(m, f)
	case f.Kind() == protoreflect.MessageKind && f.IsList():
		r.fillTo(m.Mutable(f).List().AppendMutable().Message(), r.depth)
	case f.Kind() == protoreflect.MessageKind && rng.IntN(8) == 0:
		m.Clear(f)
	case f.Kind() == protoreflect.MessageKind:
		r.change(m.Mutable(f).Message(), rng)
	case f.IsList():
		m.Mutable(f).List().Append(r.value(f))
	default:
		m.Set(f, r.value(f))
	}
}

func (r recipe) fillMap(m protoreflect.Message, f protoreflect.FieldDescriptor) {
	if f.MapKey().Kind() == protoreflect.StringKind && f.MapValue().Kind() == protoreflect.StringKind {
		m.Mutable(f).Map().Set(protoreflect.ValueOfString(r.text).MapKey(), protoreflect.ValueOfString(r.text))
	}
}

func (r recipe) value(f protoreflect.FieldDescriptor) protoreflect.Value {
	switch f.Kind() {
	case protoreflect.StringKind:
		if id, ok := r.ids[f.Name()]; ok {
			return protoreflect.ValueOfString(id)
		}
		return protoreflect.ValueOfString(r.text)
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes([]byte(r.text))
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(r.number%2 != 0)
	case protoreflect.EnumKind:
		return protoreflect.ValueOfEnum(protoreflect.EnumNumber(r.number))
	case protoreflect.Int32Kind:
		return protoreflect.ValueOfInt32(int32(r.number))
	case protoreflect.Uint32Kind:
		return protoreflect.ValueOfUint32(uint32(r.number))
	case protoreflect.Int64Kind:
		return protoreflect.ValueOfInt64(r.number)
	case protoreflect.Uint64Kind:
		return protoreflect.ValueOfUint64(uint64(r.number))
	case protoreflect.DoubleKind:
		return protoreflect.ValueOfFloat64(float64(r.number))
	default:
		return f.Default()
	}
}

// confine keeps what a message asks of the host's file system below dir, and pulls from the test's registry or none.
func confine(m protoreflect.Message, dir, image string, pull bool) {
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.IsMap():
		case f.Kind() == protoreflect.MessageKind && f.IsList():
			for i := range v.List().Len() {
				confine(v.List().Get(i).Message(), dir, image, pull)
			}
		case f.Kind() == protoreflect.MessageKind:
			confine(v.Message(), dir, image, pull)
		case f.Kind() != protoreflect.StringKind || f.IsList() || v.String() == "":
		case f.Name() == "log_directory" || f.Name() == "host_path" || f.Name() == "location":
			m.Set(f, protoreflect.ValueOfString(dir+"/"+string(f.Name())))
		case pull && f.Name() == "image" && v.String() != image:
			m.Set(f, protoreflect.ValueOfString("127.0.0.1:1/"+v.String()))
		}
		return true
	})
}
